// "Did you mean": the valid name nearest to a mistyped one.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace mutilde::app {

/// The fewest insertions, deletions, substitutions and swaps of neighbours that turn a into b.
int edit_distance(std::string_view a, std::string_view b);

/// "; did you mean 'cosine'?" if one of the candidates is near enough to be meant, else "".
std::string suggestion(std::string_view given, std::span<const std::string> candidates);

}  // namespace mutilde::app
