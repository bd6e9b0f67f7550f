#include "diffusion/respace.h"

#include <charconv>
#include <cmath>
#include <string_view>

namespace mutilde {

namespace {

int64_t parse_count(std::string_view text, const std::string& spec) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  int64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, count);
  if (error != std::errc{} || stopped != end) {
    fail<Error>(
        "space_timesteps: \"{}\" is no number of steps (in \"{}\"); \"250\", \"10,15,20\" or "
        "\"ddim50\" expected",
        text, spec);
  }
  return count;
}

std::vector<int64_t> strided_timesteps(int64_t T, int64_t count) {
  for (int64_t stride = 1; stride < T; ++stride) {
    if ((T + stride - 1) / stride != count) continue;
    std::vector<int64_t> steps;
    for (int64_t t = 0; t < T; t += stride) steps.push_back(t);
    return steps;
  }
  fail<Error>("space_timesteps: no whole stride takes exactly {} of {} steps", count, T);
}

}  // namespace

std::vector<int64_t> space_timesteps(int64_t T, const std::string& spec) {
  constexpr std::string_view kDdim = "ddim";
  std::string_view rest = spec;
  if (rest.starts_with(kDdim)) {
    return strided_timesteps(T, parse_count(rest.substr(kDdim.size()), spec));
  }
  std::vector<int64_t> counts;
  for (size_t comma = rest.find(','); comma != std::string_view::npos; comma = rest.find(',')) {
    counts.push_back(parse_count(rest.substr(0, comma), spec));
    rest.remove_prefix(comma + 1);
  }
  counts.push_back(parse_count(rest, spec));
  return space_timesteps(T, counts);
}

std::vector<int64_t> space_timesteps(int64_t T, const std::vector<int64_t>& section_counts) {
  const auto sections = static_cast<int64_t>(section_counts.size());
  if (sections == 0) fail<Error>("space_timesteps: no section given, at least one expected");
  std::vector<int64_t> steps;
  int64_t begin = 0;
  for (int64_t section = 0; section < sections; ++section) {
    const int64_t size = T / sections + (section < T % sections ? 1 : 0);
    const int64_t count = section_counts[static_cast<size_t>(section)];
    if (count < 1 || count > size) {
      fail<Error>("space_timesteps: {} steps asked of a section of {}, 1 to {} expected", count,
                  size, size);
    }
    const double stride =
        count == 1 ? 1.0 : static_cast<double>(size - 1) / static_cast<double>(count - 1);
    // The stride is added up and rounded half to even (as nearbyint does): both decide where a step
    // falls, and other programs' checkpoints were sampled with these.
    double position = 0;
    for (int64_t i = 0; i < count; ++i, position += stride) {
      steps.push_back(begin + static_cast<int64_t>(std::nearbyint(position)));
    }
    begin += size;
  }
  return steps;
}

// Eq. 19: beta_{S_t} = 1 - alpha_bar_{S_t} / alpha_bar_{S_{t-1}}.
std::vector<double> respaced_betas(const std::vector<double>& betas,
                                   const std::vector<int64_t>& use_timesteps) {
  const Schedule original(betas);
  const auto alpha_bar = original.alpha_bar.values<double>();
  std::vector<double> respaced;
  double alpha_bar_prev_t = 1;
  int64_t previous = -1;
  for (int64_t step : use_timesteps) {
    if (step <= previous || step >= original.T) {
      fail<Error>("respaced_betas: step {} after {}, ascending steps below {} expected", step,
                  previous, original.T);
    }
    const double alpha_bar_t = alpha_bar[static_cast<size_t>(step)];
    respaced.push_back(1 - alpha_bar_t / alpha_bar_prev_t);
    alpha_bar_prev_t = alpha_bar_t;
    previous = step;
  }
  return respaced;
}

SpacedDiffusion::SpacedDiffusion(const std::vector<double>& betas,
                                 const std::vector<int64_t>& use_timesteps,
                                 const DiffusionConfig& config)
    : GaussianDiffusion(respaced_betas(betas, use_timesteps), config, use_timesteps,
                        static_cast<int64_t>(betas.size())) {}

}  // namespace mutilde
