// A peer that talks to a server's connection over a stream in memory, in the test's own thread.
#pragma once

#include <memory>

#include "server/connection.hpp"
#include "server/operations.hpp"
#include "test/host.hpp"
#include "test/memory_stream.hpp"
#include "transport/handshake.hpp"

namespace drust::test {

// The server's end of a connection in memory, and the peer that talks to it, already authenticated unless
// told otherwise.
struct Visitor {
  MemoryPipe pipe;
  std::unique_ptr<server::Connection> connection;

  Visitor(server::Operations& operations, bool authenticate = true) {
    connection =
        std::make_unique<server::Connection>(std::make_unique<MemoryStream>(pipe), operations, test_token());
    if (!authenticate) return;
    transport::Handshake handshake(transport::Role::client, test_token(), operations.server(),
                                   transport::Nonce{});
    while (!handshake.is_done()) {
      const auto outgoing = handshake.take_outgoing();
      pipe.say(outgoing.data(), outgoing.size());
      go();
      while (handshake.wanted_bytes() > 0 && pipe.output.size() >= handshake.wanted_bytes()) {
        ensure(handshake.receive(pipe.hear(handshake.wanted_bytes())).ok(),
               "the test's handshake must succeed");
      }
    }
  }
  // Lets the connection do all it can.
  server::Connection::Wants go() {
    for (;;) {
      const std::size_t before = pipe.input.size() - pipe.output.size();
      connection->set_ready(true, true, pipe.has_ended);
      const auto wants = connection->advance();
      const bool has_moved = pipe.input.size() - pipe.output.size() != before;
      if (wants != server::Connection::Wants::turn &&
          !(wants == server::Connection::Wants::event && has_moved))
        return wants;
    }
  }
};

}  // namespace drust::test
