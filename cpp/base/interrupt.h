// Stopping long work from outside.
#pragma once

namespace ggtune {

// Asked between nodes while the engine computes, on the calling thread; true stops the work, which then raises
// Interrupted. Set once, by the bindings.
void set_interrupt_check(bool (*check)());
bool interrupted();

}  // namespace ggtune
