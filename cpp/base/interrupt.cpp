#include "base/interrupt.h"

namespace ggtune {

namespace {

bool (*interrupt_check)() = nullptr;

}  // namespace

void set_interrupt_check(bool (*check)()) {
    interrupt_check = check;
}
bool interrupted() {
    return interrupt_check != nullptr && interrupt_check();
}

}  // namespace ggtune
