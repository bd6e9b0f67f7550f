// Ctrl-C, SIGTERM and a terminal that closes (SIGHUP) as a question: shall we stop?
#pragma once

namespace mutilde::app {

/// From now on the first of them is kept for interrupted(), and told on stderr. Another one, unless it follows
/// within a second or two (they come in pairs), ends the program at once. Output that nobody reads (SIGPIPE) or
/// that is over a limit (SIGXFSZ) is an error of the write, and no end of the program.
void catch_interrupts();
bool interrupted();

/// While one lives, another interrupt waits for its end: what is half saved is of no use.
class Saving {
 public:
  Saving();
  ~Saving();
  Saving(const Saving&) = delete;
  Saving& operator=(const Saving&) = delete;
};

}  // namespace mutilde::app
