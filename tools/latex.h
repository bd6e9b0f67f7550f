// Checks LaTeX mathematics for the mistakes that keep it from rendering.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mutilde {

/// Braces, environments and \left-\right that do not pair up, commands that
/// are not known (most often misspelt), and a blank line, which ends a display.
/// One line a problem; empty if all is well.
std::vector<std::string> latex_problems(std::string_view latex);

/// Whether a katex that works is on the PATH.
bool katex_is_available();

/// What katex says about it, empty if it renders. Call where katex_is_available().
std::string katex_problem(std::string_view latex);

}  // namespace mutilde
