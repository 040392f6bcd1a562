#include "dispatch/cpu_features.h"

#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ggtune {
namespace {

bool has_bits(unsigned long long word, std::initializer_list<int> bits) {
    for (const int bit : bits) {
        if ((word >> bit & 1) == 0) {
            return false;
        }
    }
    return true;
}

#if defined(__x86_64__)

// Bits: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (CPUID) and volume 1, chapter 13 (XCR0);
// AMD64 Architecture Programmer's Manual, volume 3, appendix E. __builtin_cpu_supports() knows AVX-VNNI and AMX in some
// compilers only.
struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros for a leaf that is not there
    return r;
}

// The registers that the operating system saves.
unsigned long long saved_state() {
    constexpr int kOsXsave = 27;
    if (!has_bits(cpuid(1, 0).ecx, {kOsXsave})) {
        return 0;
    }
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<unsigned long long>(high) << 32 | low;
}

bool has_avx2() {
    return has_bits(saved_state(), {1, 2}) &&
           has_bits(cpuid(1, 0).ecx, {12 /* FMA */, 22 /* MOVBE */, 23 /* POPCNT */, 28 /* AVX */, 29 /* F16C */}) &&
           has_bits(cpuid(7, 0).ebx, {3 /* BMI1 */, 5 /* AVX2 */, 8 /* BMI2 */}) &&
           has_bits(cpuid(0x80000001, 0).ecx, {5 /* LZCNT */});
}

bool has_avxvnni() {
    return has_avx2() && has_bits(cpuid(7, 1).eax, {4});
}

bool has_avx512() {
    return has_avx2() && has_bits(saved_state(), {5, 6, 7}) &&
           has_bits(cpuid(7, 0).ebx, {16 /* F */, 17 /* DQ */, 28 /* CD */, 30 /* BW */, 31 /* VL */});
}

bool has_avx512vnni() {
    return has_avx512() && has_bits(cpuid(7, 0).ecx, {11});
}

// Linux grants the tiles' registers on demand: the kernels ask for them, and do without where it says no.
bool has_amx() {
    return has_avx512vnni() && has_bits(saved_state(), {17, 18}) && has_bits(cpuid(7, 1).eax, {5 /* AVX512_BF16 */}) &&
           has_bits(cpuid(7, 0).edx, {22 /* BF16 */, 24 /* TILE */, 25 /* INT8 */});
}

constexpr struct {
    const char * name;
    bool (*can_run)();
} kChecks[] = {
    {"x86-64", [] { return true; }}, {"avx2", has_avx2}, {"avx512", has_avx512}, {"avxvnni", has_avxvnni},
    {"avx512vnni", has_avx512vnni},  {"amx", has_amx},
};

#elif defined(__aarch64__) && defined(__linux__)

// Bits: Linux, Documentation/arch/arm64/elf_hwcaps.rst and arch/arm64/include/uapi/asm/hwcap.h.
bool has_dotprod() {
    return has_bits(getauxval(AT_HWCAP), {7 /* CRC32 */, 8 /* ATOMICS */, 12 /* ASIMDRDM */, 20 /* ASIMDDP */});
}

bool has_i8mm() {
    return has_dotprod() && has_bits(getauxval(AT_HWCAP2), {13 /* I8MM */, 14 /* BF16 */});
}

constexpr struct {
    const char * name;
    bool (*can_run)();
} kChecks[] = {
    {"armv8", [] { return true; }},
    {"dotprod", has_dotprod},
    {"i8mm", has_i8mm},
};

#endif

}  // namespace

bool can_run_variant(const char * name) {
#if defined(__x86_64__) || (defined(__aarch64__) && defined(__linux__))
    for (const auto & check : kChecks) {
        if (std::strcmp(check.name, name) == 0) {
            return check.can_run();
        }
    }
#endif
    return false;
}

}  // namespace ggtune
