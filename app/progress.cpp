#include "app/progress.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace mutilde::app {

namespace {

size_t terminal_columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

bool terminal_shows_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string_view locale = value;
    return locale.find("UTF-8") != locale.npos || locale.find("utf8") != locale.npos;
  }
  return false;
}

std::string bar(double fraction, size_t width) {
  static const bool utf8 = terminal_shows_utf8();
  const auto full =
      static_cast<size_t>(std::clamp(fraction, 0.0, 1.0) * static_cast<double>(width));
  std::string text;
  for (size_t i = 0; i < width; ++i) {
    if (utf8) {
      text += i < full ? "█" : "░";
    } else {
      text += i < full ? '#' : '.';
    }
  }
  return text;
}

}  // namespace

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m {:02}s", s / 60, s % 60);
  if (s < 48 * 3600) return fmt::format("{}h {:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d {:02}h", s / 86400, s / 3600 % 24);
}

std::string grouped(int64_t number) {
  std::string text = std::to_string(number);
  const size_t first_digit = number < 0 ? 1 : 0;
  for (size_t at = text.size(); at > first_digit + 3;) {
    at -= 3;
    text.insert(at, 1, ',');
  }
  return text;
}

std::string bytes_text(double bytes) {
  if (bytes < 1000) return fmt::format("{:.0f} bytes", bytes);
  if (bytes < 1e6) return fmt::format("{:.1f} kB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

void note(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

Progress::Progress(std::string label, int64_t done, int64_t total, int64_t line_every)
    : label_(std::move(label)),
      start_(done),
      done_(done),
      total_(total),
      line_every_(std::max<int64_t>(1, line_every)),
      last_line_(done),
      begin_(Clock::now()),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { clear(); }

double Progress::seconds_left() const {
  const double passed = std::chrono::duration<double>(Clock::now() - begin_).count();
  return passed / static_cast<double>(done_ - start_) * static_cast<double>(total_ - done_);
}

std::string Progress::line(size_t columns) const {
  std::string count = fmt::format("{} {}", label_, done_);
  std::string tail = status_.empty() ? "" : "  " + status_;
  if (total_ > 0) {
    count += fmt::format("/{}", total_);
    if (done_ > start_ && done_ < total_)
      tail += fmt::format("  {} left", duration_text(seconds_left()));
  }
  const size_t used = count.size() + tail.size();
  if (!terminal_ || total_ == 0 || used + 12 > columns) return (count + tail).substr(0, columns);
  const double fraction = static_cast<double>(done_) / static_cast<double>(total_);
  const std::string percent = fmt::format("{:3.0f}%", std::min(100.0, 100 * fraction));
  const size_t width = std::min<size_t>(30, columns - used - 8);
  return fmt::format("{}  {} {}{}", count, bar(fraction, width), percent, tail);
}

void Progress::update(int64_t done, const std::string& status) {
  done_ = done;
  status_ = status;
  const bool finished = total_ > 0 && done >= total_;
  if (!terminal_) {
    if (done - last_line_ < line_every_ && !finished) return;
    last_line_ = done;
    note(line(1000) + "\n");
    return;
  }
  const auto now = Clock::now();
  if (drawn_ && now - last_draw_ < std::chrono::milliseconds(100) && !finished) return;
  last_draw_ = now;
  drawn_ = true;
  note("\r\x1b[2K" + line(terminal_columns() - 1));
}

void Progress::message(const std::string& text) {
  const bool redraw = drawn_;
  clear();
  note(text + "\n");
  if (!redraw) return;
  drawn_ = true;
  note(line(terminal_columns() - 1));
}

void Progress::clear() {
  if (!drawn_) return;
  drawn_ = false;
  note("\r\x1b[2K");
}

}  // namespace mutilde::app
