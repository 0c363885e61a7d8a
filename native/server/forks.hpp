// How often this process has been forked off: a child sees another number than the objects it inherited, and
// so knows that their sockets and threads are its parent's. Costs a load, where getpid() is a system call.
#pragma once

#include <cstdint>

namespace drust::server {

[[nodiscard]] std::uint32_t fork_generation() noexcept;

}  // namespace drust::server
