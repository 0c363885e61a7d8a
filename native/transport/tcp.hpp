// Streams over TCP, the default transport.
//
// A lost peer shows in one of four ways, and each has its own bound: killed (the kernel resets or ends the
// stream: at once), unplugged with bytes of ours on the way (TCP_USER_TIMEOUT), unplugged while idle or after
// everything was acknowledged (keepalive, and the silence bound of a waiting call), stopped (the silence
// bound alone: its kernel still acknowledges). Sockets stay in blocking mode with SO_RCVTIMEO and
// SO_SNDTIMEO, so a prompt answer costs one system call; poll() is used only to go on waiting after a signal.
// Serving threads pass MSG_DONTWAIT. Every descriptor is close-on-exec. Addresses are numeric: resolving a
// name can block for longer than any bound here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "transport/contract.hpp"

namespace drust::transport {

// server_lost if nobody accepts within `timeout_ms` (at once if the port is closed), bad_request if `host` is
// no address. The new stream's silence bound is `timeout_ms`.
Result<std::unique_ptr<Stream>> connect_tcp(const std::string& host, std::uint16_t port,
                                            std::uint32_t timeout_ms);

// `port` 0 chooses a free one. `host` is a numeric address ("0.0.0.0" or "::" for every interface).
Result<std::unique_ptr<Listener>> listen_tcp(const std::string& host, std::uint16_t port);

// Takes ownership of a connected stream socket (tests use socketpair()).
std::unique_ptr<Stream> adopt_socket(int descriptor);

}  // namespace drust::transport
