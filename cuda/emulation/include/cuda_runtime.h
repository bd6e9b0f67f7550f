// Stands in for CUDA's header of this name, so that a .cu file compiles as C++: the folder of this
// file comes first on the include path of an emulated build.
//
// What it has is what our kernels use. A kernel that needs more does not compile, and then it is
// time to add it here, with a test.
#pragma once

#include "cuda/emulation/atomic_functions.h"
#include "cuda/emulation/keywords.h"
#include "cuda/emulation/math_functions.h"
#include "cuda/emulation/runtime_api.h"
#include "cuda/emulation/thread.h"
#include "cuda/emulation/vector_types.h"
#include "cuda/emulation/warp_functions.h"
