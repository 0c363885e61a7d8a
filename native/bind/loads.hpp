// The load table as the server's control plane writes it; loads.cpp has the rest.
#pragma once

#include <nanobind/nanobind.h>

#include "bind/runtime.hpp"

namespace drust::bind {

namespace nb = nanobind;

// row: (age in ms, workers, idle, queued, processors in use of 1000, claimed bytes, quota bytes).
void set_load(const Runtime& runtime, ServerId server, nb::tuple row);
// What a server measures of itself: (idle workers, tasks that wait, claimed bytes, quota bytes).
nb::tuple measure(const Runtime& runtime);

}  // namespace drust::bind
