#include "dispatch/cpu_variants.h"

#include <cstdlib>
#include <stdexcept>

#include "dispatch/cpu_features.h"

// Lists made by the build (isolate_variant.cmake): GGTUNE_VARIANTS(X) calls X(prefix, name) for each variant, slowest
// first; GGTUNE_FUNCTIONS(X, ...) calls X(symbol, ...) for each public function that they have.
#include "cpu_variant_lists.h"

// A function of each variant is called <prefix><symbol>. Here <symbol> itself is defined: a jump to where slot_<symbol>
// points. Symbols are names as the linker sees them, so that no signature has to be repeated.
#define DECLARE_FUNCTION(symbol, prefix) extern "C" void prefix##symbol();
#define DECLARE_VARIANT(prefix, name) GGTUNE_FUNCTIONS(DECLARE_FUNCTION, prefix)
GGTUNE_VARIANTS(DECLARE_VARIANT)

extern "C" {
#define DEFINE_SLOT(symbol, ...) __attribute__((visibility("hidden"), used)) void (*slot_##symbol)() = nullptr;
GGTUNE_FUNCTIONS(DEFINE_SLOT)
}

// The jumps use a register that a call may change on its way: r11 (System V AMD64 ABI, 3.2.1), x16 (AAPCS64, 6.1.1).
#if defined(__x86_64__)
#define JUMP(symbol) "endbr64\n jmp *slot_" symbol "(%rip)\n"
#else
#define JUMP(symbol) "hint #34\n adrp x16, slot_" symbol "\n ldr x16, [x16, :lo12:slot_" symbol "]\n br x16\n"
#endif
#define DEFINE_JUMP(symbol, ...)                                                                            \
    __asm__(".pushsection .text\n .balign 16\n .globl " #symbol "\n .type " #symbol ", @function\n" #symbol \
            ":\n" JUMP(#symbol) ".size " #symbol ", . - " #symbol "\n .popsection\n");
GGTUNE_FUNCTIONS(DEFINE_JUMP)

namespace ggtune {
namespace {

struct Variant {
    const char * name;
    void (*take)();  // points the slots to it
};

#define SET_SLOT(symbol, prefix) slot_##symbol = prefix##symbol;
#define LIST_VARIANT(prefix, name) {name, [] { GGTUNE_FUNCTIONS(SET_SLOT, prefix) }},
const Variant kVariants[] = {GGTUNE_VARIANTS(LIST_VARIANT)};

const Variant * fastest() {
    const Variant * best = &kVariants[0];
    for (const Variant & variant : kVariants) {
        best = can_run_variant(variant.name) ? &variant : best;
    }
    return best;
}

// nullptr where it asks for what is not there.
const Variant * asked_for() {
    const char * name = std::getenv("GGTUNE_CPU");
    if (name == nullptr || *name == '\0') {
        return fastest();
    }
    for (const Variant & variant : kVariants) {
        if (std::string(name) == variant.name && can_run_variant(variant.name)) {
            return &variant;
        }
    }
    return nullptr;
}

// The slots are filled when the program or the module is loaded, before anything can call them.
const Variant * const chosen = [] {
    const Variant * variant = asked_for();
    (variant != nullptr ? variant : fastest())->take();
    return variant;
}();

}  // namespace

std::vector<std::string> cpu_variants() {
    std::vector<std::string> names;
    for (const Variant & variant : kVariants) {
        if (can_run_variant(variant.name)) {
            names.emplace_back(variant.name);
        }
    }
    return names;
}

std::string cpu_variant() {
    if (chosen != nullptr) {
        return chosen->name;
    }
    std::string message = "the environment variable GGTUNE_CPU is " + std::string(std::getenv("GGTUNE_CPU")) +
                          ", which is none of what this machine runs:";
    for (const std::string & name : cpu_variants()) {
        message += " " + name;
    }
    throw std::runtime_error(message);
}

}  // namespace ggtune
