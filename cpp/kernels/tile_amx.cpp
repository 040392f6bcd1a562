// Compiled for CPUs with AMX whatever the rest is compiled for (cpp/kernels/CMakeLists.txt); runs only where they have it.
#include "kernels/tile.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ggtune::kernels::detail {
namespace {

constexpr int64_t kTileBytes = 64;  // of a row

// What LDTILECFG reads.
struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(Configuration) == 64);

Configuration full_tiles() {
    Configuration configuration;
    for (int i = 0; i < 8; ++i) {
        configuration.row_bytes[i] = kTileBytes;
        configuration.rows[i] = kTileRows;
    }
    return configuration;
}

// Another user of the tiles on this thread, such as ggml, may have configured them once and for all.
void acquire(void * state) {
    _tile_storeconfig(state);
    static const Configuration configuration = full_tiles();
    _tile_loadconfig(&configuration);
}

void release(const void * state) {
    if (static_cast<const Configuration *>(state)->palette == 0) {
        _tile_release();
    } else {
        _tile_loadconfig(state);
    }
}

// Registers: 0 to 3 the sums, 4 and 5 the panels of A, 6 and 7 those of B.
template <int a_panels, int b_panels>
void multiply_panels(const TileProduct & p) {
    float * c = p.c;
    float * c_below = c + kTileRows * p.c_stride;
    const auto c_row = static_cast<long>(p.c_stride * static_cast<int64_t>(sizeof(float)));
    if (p.accumulate) {
        _tile_loadd(0, c, c_row);
        if constexpr (b_panels == 2) {
            _tile_loadd(1, c + kTileRows, c_row);
        }
        if constexpr (a_panels == 2) {
            _tile_loadd(2, c_below, c_row);
        }
        if constexpr (a_panels == 2 && b_panels == 2) {
            _tile_loadd(3, c_below + kTileRows, c_row);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const Bf16 * a = p.a;
    const Bf16 * b = p.b;
    for (int64_t k = 0; k < p.depth; ++k) {
        _tile_loadd(6, b, kTileBytes);
        _tile_loadd(4, a, kTileBytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (b_panels == 2) {
            _tile_loadd(7, b + p.b_stride, kTileBytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (a_panels == 2) {
            _tile_loadd(5, a + p.a_stride, kTileBytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (a_panels == 2 && b_panels == 2) {
            _tile_dpbf16ps(3, 5, 7);
        }
        a += kTileValues;
        b += kTileValues;
    }
    _tile_stored(0, c, c_row);
    if constexpr (b_panels == 2) {
        _tile_stored(1, c + kTileRows, c_row);
    }
    if constexpr (a_panels == 2) {
        _tile_stored(2, c_below, c_row);
    }
    if constexpr (a_panels == 2 && b_panels == 2) {
        _tile_stored(3, c_below + kTileRows, c_row);
    }
}

void multiply(const TileProduct & product) {
    static constexpr void (*kernels[kMostPanels][kMostPanels])(const TileProduct &) = {
        {multiply_panels<1, 1>, multiply_panels<1, 2>}, {multiply_panels<2, 1>, multiply_panels<2, 2>}};
    kernels[product.a_panels - 1][product.b_panels - 1](product);
}

// CPUID leaf 7: AMX-BF16, AMX-TILE. Then Linux has to be asked for the permission to use the tiles' registers, for the
// whole process (Documentation/arch/x86/xstate.rst); old kernels and some containers say no.
bool is_available() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) {
        return false;
    }
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return (edx & kBf16) != 0 && (edx & kTile) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const TileUnit * amx_tiles() {
    static const TileUnit unit = {"amx", true, acquire, release, multiply};
    static const bool available = is_available();
    return available ? &unit : nullptr;
}

}  // namespace ggtune::kernels::detail

#else

namespace ggtune::kernels::detail {

const TileUnit * amx_tiles() {
    return nullptr;
}

}  // namespace ggtune::kernels::detail

#endif
