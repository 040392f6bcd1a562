// Weight types that store indices into a codebook of small vectors. Private to cpp/kernels.
#pragma once

#include <ggml.h>

#include "kernels/int8_unpack.h"

namespace ggtune::kernels::detail {

// The format of IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S; nullptr for the others.
const Int8Format * codebook_format(ggml_type type);

}  // namespace ggtune::kernels::detail
