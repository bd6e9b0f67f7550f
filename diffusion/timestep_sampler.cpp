#include "diffusion/timestep_sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mutilde {

namespace {

std::vector<double> uniform_probabilities(int64_t T) {
  return std::vector<double>(static_cast<size_t>(T), 1.0 / static_cast<double>(T));
}

int64_t checked_T(const char* name, int64_t T) {
  if (T < 1) fail<Error>("{}: {} timesteps given, at least 1 expected", name, T);
  return T;
}

}  // namespace

void TimestepSampler::update_with_losses(const Tensor&, const Tensor&) {}

void TimestepSampler::restore(const std::map<std::string, Tensor>& state) {
  if (!state.empty()) {
    fail<Error>("TimestepSampler: this kind has no state, but {} tensors were given", state.size());
  }
}

TimestepSample TimestepSampler::sample(int64_t n, Generator& generator, Device device) const {
  const std::vector<double> p = probabilities();
  std::vector<double> cumulative(p.size());
  std::partial_sum(p.begin(), p.end(), cumulative.begin());
  const Tensor uniform = generator.uniform({n}, DType::kFloat64);
  std::vector<int64_t> timesteps;
  std::vector<float> weights;
  for (double u : uniform.values<double>()) {
    // The first t whose cumulative probability exceeds u;
    // round-off may leave the last a little below 1.
    const auto found =
        std::upper_bound(cumulative.begin(), cumulative.end() - 1, u * cumulative.back());
    const auto t = static_cast<size_t>(found - cumulative.begin());
    timesteps.push_back(static_cast<int64_t>(t));
    weights.push_back(static_cast<float>(1 / (static_cast<double>(p.size()) * p[t])));
  }
  return {Tensor::from<int64_t>({n}, timesteps).to(device),
          Tensor::from<float>({n}, weights).to(device)};
}

UniformSampler::UniformSampler(int64_t T) : T_(checked_T("UniformSampler", T)) {}

std::vector<double> UniformSampler::probabilities() const { return uniform_probabilities(T_); }

LossSecondMomentSampler::LossSecondMomentSampler(int64_t T, int64_t history, double uniform_share)
    : T_(checked_T("LossSecondMomentSampler", T)),
      history_(history),
      uniform_share_(uniform_share) {
  if (history < 1 || !(uniform_share > 0 && uniform_share <= 1)) {
    fail<Error>(
        "LossSecondMomentSampler: history {} and uniform share {} given, "
        "at least 1 and 0 < share <= 1 expected",
        history, uniform_share);
  }
  losses_.resize(static_cast<size_t>(T * history));
  counts_.resize(static_cast<size_t>(T));
}

bool LossSecondMomentSampler::warm() const {
  return std::all_of(counts_.begin(), counts_.end(), [&](int64_t n) { return n == history_; });
}

// Eq. 18: p_t proportional to sqrt(E[L_t^2]).
std::vector<double> LossSecondMomentSampler::probabilities() const {
  if (!warm()) return uniform_probabilities(T_);
  std::vector<double> p(counts_.size());
  for (size_t t = 0; t < p.size(); ++t) {
    const double* recent = &losses_[t * static_cast<size_t>(history_)];
    const double sum_of_squares = std::inner_product(recent, recent + history_, recent, 0.0);
    p[t] = std::sqrt(sum_of_squares / static_cast<double>(history_));
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  if (!(total > 0)) return uniform_probabilities(T_);  // all losses are 0
  for (double& p_t : p) {
    p_t = p_t / total * (1 - uniform_share_) + uniform_share_ / static_cast<double>(T_);
  }
  return p;
}

void LossSecondMomentSampler::update_with_losses(const Tensor& t, const Tensor& losses) {
  const auto timesteps = t.to_vector<int64_t>();
  const auto values = losses.to_vector<double>();
  if (timesteps.size() != values.size()) {
    fail<ShapeError>("update_with_losses: {} timesteps and {} losses", timesteps.size(),
                     values.size());
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (timesteps[i] < 0 || timesteps[i] >= T_ || !std::isfinite(values[i])) {
      fail<Error>("update_with_losses: loss {} at t = {}, a finite one at 0 <= t < {} expected",
                  values[i], timesteps[i], T_);
    }
  }
  for (size_t i = 0; i < values.size(); ++i) {
    double* recent = &losses_[static_cast<size_t>(timesteps[i] * history_)];
    int64_t& count = counts_[static_cast<size_t>(timesteps[i])];
    if (count == history_) {
      std::copy(recent + 1, recent + history_, recent);
      --count;
    }
    recent[count++] = values[i];
  }
}

std::map<std::string, Tensor> LossSecondMomentSampler::state() const {
  return {{"losses", Tensor::from<double>({T_, history_}, losses_)},
          {"counts", Tensor::from<int64_t>({T_}, counts_)}};
}

void LossSecondMomentSampler::restore(const std::map<std::string, Tensor>& state) {
  const auto losses = state.find("losses"), counts = state.find("counts");
  if (state.size() != 2 || losses == state.end() || counts == state.end()) {
    fail<Error>("LossSecondMomentSampler: the state to restore must be \"losses\" and \"counts\"");
  }
  if (!(losses->second.shape() == Shape{T_, history_}) || !(counts->second.shape() == Shape{T_})) {
    fail<ShapeError>("LossSecondMomentSampler: state of shapes {} and {}, {} and {} expected",
                     losses->second.shape(), counts->second.shape(), Shape{T_, history_},
                     Shape{T_});
  }
  const auto new_losses = losses->second.to_vector<double>();
  const auto new_counts = counts->second.to_vector<int64_t>();
  const bool valid = std::all_of(new_losses.begin(), new_losses.end(),
                                 [](double x) { return std::isfinite(x); }) &&
                     std::all_of(new_counts.begin(), new_counts.end(),
                                 [&](int64_t n) { return n >= 0 && n <= history_; });
  if (!valid) fail<Error>("LossSecondMomentSampler: the state to restore holds impossible values");
  losses_ = new_losses;
  counts_ = new_counts;
}

std::unique_ptr<TimestepSampler> make_timestep_sampler(const std::string& name, int64_t T) {
  if (name == "uniform") return std::make_unique<UniformSampler>(T);
  if (name == "loss-second-moment") return std::make_unique<LossSecondMomentSampler>(T);
  fail<Error>(
      "make_timestep_sampler: there is no sampler \"{}\", only uniform and loss-second-moment",
      name);
}

}  // namespace mutilde
