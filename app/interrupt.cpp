#include "app/interrupt.h"

#include <cerrno>
#include <csignal>
#include <ctime>
#include <initializer_list>

#include <unistd.h>

namespace mutilde::app {

namespace {

volatile std::sig_atomic_t stop = 0, saving = 0, second = 0;  // second: the signal's number
volatile std::time_t first_second = 0;

void end_by(int signal) {
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

/// Only what a signal handler may call.
void on_interrupt(int signal) {
  const int error = errno;
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (stop == 0) {
    stop = 1;
    first_second = now.tv_sec;
    constexpr char kText[] = "\nstopping after this step; a second time ends without saving\n";
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kText, sizeof(kText) - 1);
  } else if (now.tv_sec > first_second + 1) {
    if (saving != 0) {
      second = signal;
    } else {
      end_by(signal);
    }
  }
  errno = error;
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

bool interrupted() { return stop != 0; }

Saving::Saving() { saving = 1; }
Saving::~Saving() {
  saving = 0;
  if (second != 0) end_by(second);
}

}  // namespace mutilde::app
