// Devices in the host's memory, behind ggml's interface of a device: to test and try out how layers are placed, copied
// and run out of memory, without a graphics card. They compute with ggml's CPU backend; nothing but that interface gets
// at their memory, and they run ggml's own operations alone.
//
// The environment variable GGTUNE_SIMULATED_DEVICES says which there are, "200M,64M:half": SIM0 with 200 MiB, SIM1 with
// 64 MiB. What may follow the memory of each:
//   half       operands of products are rounded to half precision, as Vulkan does
//   lost=N     every computation after the Nth fails
//   lacks=OP   it can't run that operation (ggml's name)
#pragma once

#include <ggml-backend.h>

namespace ggtune {

// Once; does nothing where the variable is not set. Raises Error for what it can't mean.
void register_simulated_devices();

bool is_simulated(ggml_backend_dev_t device);
// exact: nothing is rounded from now on, whatever the variable says.
void open_simulated(ggml_backend_dev_t device, bool exact);

}  // namespace ggtune
