// How far a run is: one line that redraws itself on a terminal, plain lines now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace mutilde::app {

/// "42s", "3m 07s", "2h 05m", "4d 03h".
std::string duration_text(double seconds);
/// "1,240,323".
std::string grouped(int64_t number);
/// "12.3 MB".
std::string bytes_text(double bytes);

/// Prints to stderr. What cannot be written there, to a terminal that is gone or a full disk, is not worth a run.
void note(std::string_view text);

class Progress {
 public:
  /// `total` 0: no end known. `line_every`: steps between plain lines.
  Progress(std::string label, int64_t done, int64_t total, int64_t line_every);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `status` is shown beside the count, as in "loss 0.0451  38.2 images/s".
  void update(int64_t done, const std::string& status);
  /// A line of its own; the bar stays below it.
  void message(const std::string& text);
  /// Takes the bar away.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::string line(size_t columns) const;
  double seconds_left() const;

  std::string label_, status_;
  int64_t start_, done_, total_, line_every_, last_line_;
  Clock::time_point begin_, last_draw_;
  bool terminal_, drawn_ = false;
};

}  // namespace mutilde::app
