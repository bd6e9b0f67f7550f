// Ctrl-C and SIGTERM as a question: shall we stop? A second one ends the program at once.
#pragma once

namespace mutilde::app {

void catch_interrupts();
bool interrupted();

}  // namespace mutilde::app
