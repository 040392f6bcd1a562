// The choice of the CPU variant: dispatch_test [NAME], with NAME in GGTUNE_CPU, too.
#include "dispatch/cpu_variants.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "check.h"
#include "kernels/gemm.h"
#include "kernels/int8_product.h"
#include "kernels/scale_fit.h"

using namespace ggtune;
using ggtune::test::check;

namespace {

void test_calls() {
    constexpr int64_t kSize = 40;
    const std::vector<float> a = test::random_values(kSize * kSize, 1);
    const std::vector<float> b = test::random_values(kSize * kSize, 2);
    std::vector<float> c(kSize * kSize), expected(kSize * kSize);
    kernels::gemm(kSize, kSize, kSize, {a.data(), kSize, 1}, {b.data(), kSize, 1}, 0.5f, 0.0f, c.data(), kSize, 1, 0,
                  1);
    kernels::gemm_reference(kSize, kSize, kSize, {a.data(), kSize, 1}, {b.data(), kSize, 1}, 0.5f, 0.0f,
                            expected.data(), kSize, 1);
    check("gemm", test::relative_difference(c, expected), 1e-6);

    std::vector<uint8_t> row(ggml_row_size(GGML_TYPE_Q8_0, 32));
    ggml_quantize_chunk(GGML_TYPE_Q8_0, a.data(), row.data(), 0, 1, 32, nullptr);
    const std::vector<uint8_t> before = row;
    const std::vector<float> errors(32, 0.0f);
    kernels::ScaleFit(GGML_TYPE_Q8_0, a.data(), kSize, 32).fit(1, errors.data(), before.data(), row.data());
    check("a class: ScaleFit", row == before ? 0.0 : 1.0, 0.0);
}

// Whether the variant in use is the fastest that there is.
bool chose_fastest() {
    return cpu_variant() == cpu_variants().back();
}

void test_unknown_name() {
    std::string message;
    try {
        cpu_variant();
    } catch (const std::runtime_error & error) {
        message = error.what();
    }
    std::printf("%s\n", message.c_str());
    check("the message names the variable", message.find("GGTUNE_CPU") != std::string::npos ? 0 : 1, 0);
    for (const std::string & name : cpu_variants()) {
        check("the message lists " + name, message.find(name) != std::string::npos ? 0 : 1, 0);
    }
}

}  // namespace

int main(int argc, char ** argv) {
    const std::string asked_for = argc > 1 ? argv[1] : "";
    const std::vector<std::string> names = cpu_variants();
    if (asked_for == "unknown") {
        test_unknown_name();
    } else if (asked_for.empty()) {
        check("the fastest variant is chosen", std::getenv("GGTUNE_CPU") != nullptr || chose_fastest() ? 0 : 1, 0);
    } else if (std::find(names.begin(), names.end(), asked_for) == names.end()) {
        std::printf("skipped: this machine can't run the variant %s\n", asked_for.c_str());
        return 77;
    } else {
        check("the variant asked for is chosen", cpu_variant() == asked_for ? 0 : 1, 0);
    }
    test_calls();
    return test::finish();
}
