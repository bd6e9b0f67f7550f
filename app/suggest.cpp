#include "app/suggest.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace mutilde::app {

int edit_distance(std::string_view a, std::string_view b) {
  // Row i holds the distances between the first i characters of a and each beginning of b.
  std::vector<int> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last = std::exchange(last, row);
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substitution = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, substitution});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

std::string suggestion(std::string_view given, std::span<const std::string> candidates) {
  const std::string* nearest = nullptr;
  int distance = std::max(1, static_cast<int>(given.size()) / 3) + 1;  // further is another word
  for (const std::string& candidate : candidates) {
    int d = edit_distance(given, candidate);
    // A beginning of a name is a good guess too: "--num_res" for "--num_res_blocks".
    if (given.size() > 4 && candidate.starts_with(given)) d = std::min(d, 1);
    if (d < distance) {
      distance = d;
      nearest = &candidate;
    }
  }
  return nearest == nullptr ? "" : fmt::format("; did you mean '{}'?", *nearest);
}

}  // namespace mutilde::app
