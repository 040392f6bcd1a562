// Empty but in the variants of the kernels that are compiled for AMX (cpp/dispatch/CMakeLists.txt).
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

// Registers: 0 to 3 the sums, 4 and 5 the panels of A, 6 and 7 those of B. Measured: with one operand streamed past the
// L1 cache and the other in it (depth 16: 32 KiB) the products run at the full rate, else at three quarters of it.
#define GGTUNE_LOAD(operand, tile, from)              \
    if constexpr (streamed == Streamed::operand) {    \
        _tile_stream_loadd(tile, (from), kTileBytes); \
    } else {                                          \
        _tile_loadd(tile, (from), kTileBytes);        \
    }

template <int a_panels, int b_panels, Streamed streamed>
inline void add_term(const TileTerm & term, const char * next_c) {
    const Bf16 * a = term.a;
    const Bf16 * b = term.b;
    const int64_t a_stride = term.a_stride;
    const int64_t b_stride = term.b_stride;
    const Bf16 * const end = a + term.depth * kTileValues;
    for (; a != end; a += kTileValues, b += kTileValues) {
        GGTUNE_LOAD(b, 6, b);
        GGTUNE_LOAD(a, 4, a);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (b_panels == 2) {
            GGTUNE_LOAD(b, 7, b + b_stride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (a_panels == 2) {
            GGTUNE_LOAD(a, 5, a + a_stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (a_panels == 2 && b_panels == 2) {
            _tile_dpbf16ps(3, 5, 7);
        }
        if constexpr (streamed != Streamed::none) {
            constexpr int kLine = 64, kLines = 4;
            for (int i = 0; i < kLines; ++i) {
                _mm_prefetch(next_c + i * kLine, _MM_HINT_T0);
            }
            next_c += kLines * kLine;
        }
    }
}

template <int a_panels, int b_panels, Streamed streamed>
void multiply_panels(const TileProduct & p) {
    float * c = p.c;
    float * c_below = c + kTileRows * p.c_stride;
    const auto c_row = static_cast<long>(p.c_stride * static_cast<int64_t>(sizeof(float)));
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
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
    }
    const auto * next_c = reinterpret_cast<const char *>(p.next_c != nullptr ? p.next_c : p.c);
    add_term<a_panels, b_panels, streamed>(p.term, next_c);
    if (p.more.depth > 0) {
        add_term<a_panels, b_panels, Streamed::none>(p.more, next_c);
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
#undef GGTUNE_LOAD

template <int a_panels, int b_panels>
void multiply_streamed(const TileProduct & product) {
    switch (product.streamed) {
        case Streamed::none:
            return multiply_panels<a_panels, b_panels, Streamed::none>(product);
        case Streamed::a:
            return multiply_panels<a_panels, b_panels, Streamed::a>(product);
        case Streamed::b:
            return multiply_panels<a_panels, b_panels, Streamed::b>(product);
    }
}

void multiply(const TileProduct & product) {
    static constexpr void (*kKernels[kMostPanels][kMostPanels])(const TileProduct &) = {
        {multiply_streamed<1, 1>, multiply_streamed<1, 2>}, {multiply_streamed<2, 1>, multiply_streamed<2, 2>}};
    kKernels[product.a_panels - 1][product.b_panels - 1](product);
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
