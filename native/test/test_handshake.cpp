// The handshake as a pure machine: every refusal, from both sides, and the known answer of its proof.
#include "transport/handshake.hpp"

#include <cstring>
#include <string>

#include "test/harness.hpp"

using namespace drust;
using transport::Handshake;
using transport::Role;

namespace {

using Bytes = std::vector<std::byte>;

Bytes token(unsigned char fill) { return Bytes(kTokenBytes, std::byte{fill}); }

transport::Nonce nonce(unsigned char fill) {
  transport::Nonce made;
  made.fill(std::byte{fill});
  return made;
}

// One direction: what was said and not yet heard.
struct Wire {
  Bytes bytes;
  void say(std::span<const std::byte> more) { bytes.insert(bytes.end(), more.begin(), more.end()); }
  Bytes hear(std::size_t count) {
    Bytes heard(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count));
    bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count));
    return heard;
  }
};

struct Ends {
  Status client;
  Status server;
  bool is_client_done = false;
  bool is_server_done = false;
};

// Runs both until neither can go on. `spoil` may change what the server hears (0) or the client hears (1).
template <class Spoil>
Ends run(Handshake& client, Handshake& server, Spoil spoil) {
  Ends ends;
  Wire to_server;
  Wire to_client;
  for (bool moved = true; moved;) {
    moved = false;
    to_server.say(client.take_outgoing());
    to_client.say(server.take_outgoing());
    const auto listen = [&](Handshake& handshake, Wire& wire, Status& status, int side) {
      const std::size_t wanted = handshake.wanted_bytes();
      if (!status.ok() || wanted == 0 || wire.bytes.size() < wanted) return;
      Bytes heard = wire.hear(wanted);
      spoil(side, heard);
      status = handshake.receive(heard);
      moved = true;
    };
    listen(server, to_server, ends.server, 0);
    listen(client, to_client, ends.client, 1);
  }
  ends.is_client_done = client.is_done();
  ends.is_server_done = server.is_done();
  return ends;
}

void nothing(int, Bytes&) {}

Ends meet(const Bytes& client_token, const Bytes& server_token, ServerId wanted, ServerId actual) {
  Handshake client(Role::client, client_token, wanted, nonce(1));
  Handshake server(Role::server, server_token, actual, nonce(2));
  return run(client, server, nothing);
}

}  // namespace

TEST("two ends that hold the same token accept each other") {
  const Ends ends = meet(token(7), token(7), 3, 3);
  CHECK(ends.client.ok());
  CHECK(ends.server.ok());
  CHECK(ends.is_client_done);
  CHECK(ends.is_server_done);
}

TEST("a client with another token is refused by the server and told so") {
  const Ends ends = meet(token(8), token(7), 3, 3);
  CHECK_EQ(ends.server.code(), Code::unauthenticated);
  CHECK_EQ(ends.client.code(), Code::unauthenticated);
  CHECK(!ends.is_client_done);
  CHECK(!ends.is_server_done);
}

TEST("a server that accepts everything but holds another token is refused by the client") {
  const Bytes ours = token(7);
  const Bytes theirs = token(8);
  Handshake client(Role::client, ours, 3, nonce(1));
  // An impostor: says hello, then proves with what it has, whatever the client proved.
  transport::Hello hello;
  hello.role = static_cast<std::uint8_t>(Role::server);
  hello.server = 3;
  hello.nonce = nonce(9);
  const auto* start = reinterpret_cast<const std::byte*>(&hello);
  CHECK(client.receive({start, transport::Hello::kPrefixBytes}).ok());
  CHECK(
      client.receive({start + transport::Hello::kPrefixBytes, sizeof hello - transport::Hello::kPrefixBytes})
          .ok());
  transport::Proof proof;
  proof.mac = transport::prove(theirs, Role::server, 3, nonce(1), nonce(9));
  CHECK_EQ(client.receive({reinterpret_cast<const std::byte*>(&proof), sizeof proof}).code(),
           Code::unauthenticated);
  CHECK(!client.is_done());
}

TEST("a proof sent back to its prover proves nothing") {
  const Bytes shared = token(7);
  const transport::Mac as_client = transport::prove(shared, Role::client, 3, nonce(1), nonce(2));
  CHECK(!transport::is_equal(as_client, transport::prove(shared, Role::server, 3, nonce(1), nonce(2))));
  CHECK(transport::is_equal(as_client, transport::prove(shared, Role::client, 3, nonce(1), nonce(2))));
}

TEST("a proof is bound to the server and to both nonces") {
  const Bytes shared = token(7);
  const transport::Mac proof = transport::prove(shared, Role::client, 3, nonce(1), nonce(2));
  CHECK(!transport::is_equal(proof, transport::prove(shared, Role::client, 4, nonce(1), nonce(2))));
  CHECK(!transport::is_equal(proof, transport::prove(shared, Role::client, 3, nonce(3), nonce(2))));
  CHECK(!transport::is_equal(proof, transport::prove(shared, Role::client, 3, nonce(1), nonce(3))));
}

TEST("another protocol version is refused on both sides with both numbers") {
  const Bytes shared = token(7);
  Handshake client(Role::client, shared, 3, nonce(1));
  Handshake server(Role::server, shared, 3, nonce(2));
  const Ends ends = run(client, server, [](int, Bytes& heard) {
    if (heard.size() == transport::Hello::kPrefixBytes) heard[4] = std::byte{99};
  });
  CHECK_EQ(ends.server.code(), Code::version_mismatch);
  CHECK_EQ(ends.client.code(), Code::version_mismatch);
  for (const Status& status : {ends.server, ends.client}) {
    CHECK(status.detail().find("99") != std::string::npos);
    CHECK(status.detail().find(std::to_string(kProtocolVersion)) != std::string::npos);
  }
}

TEST("a client that finds another server than it wanted does not go on") {
  const Ends ends = meet(token(7), token(7), 3, 4);
  CHECK_EQ(ends.client.code(), Code::server_lost);
  CHECK(!ends.is_client_done);
  CHECK(!ends.is_server_done);
}

TEST("a client that meets a client, or noise, does not go on") {
  const Bytes shared = token(7);
  Handshake one(Role::client, shared, 3, nonce(1));
  Handshake two(Role::client, shared, 3, nonce(2));
  const Ends ends = run(one, two, nothing);
  CHECK_EQ(ends.client.code(), Code::bad_request);
  Handshake server(Role::server, shared, 3, nonce(2));
  const std::string noise = "GET / HTTP/1.1\r\n";
  CHECK_EQ(server.receive(std::as_bytes(std::span(noise).first(8))).code(), Code::bad_request);
  CHECK(server.take_outgoing().empty());
}

TEST("one flipped bit anywhere in the handshake ends it") {
  const Bytes shared = token(7);
  std::size_t ended = 0;
  std::size_t tried = 0;
  const std::size_t all_bits = (sizeof(transport::Hello) + sizeof(transport::Proof)) * 8;
  for (int side = 0; side < 2; ++side) {
    for (std::size_t bit = 0; bit < all_bits; ++bit) {
      const std::size_t byte = bit / 8;
      Handshake client(Role::client, shared, 3, nonce(1));
      Handshake server(Role::server, shared, 3, nonce(2));
      std::size_t at[2] = {0, 0};
      const Ends ends = run(client, server, [&](int hearer, Bytes& heard) {
        std::size_t& begin = at[hearer];
        if (hearer == side && byte >= begin && byte < begin + heard.size()) {
          heard[byte - begin] ^= std::byte{static_cast<unsigned char>(1U << (bit % 8))};
        }
        begin += heard.size();
      });
      ++tried;
      if (!ends.is_client_done || !ends.is_server_done) ++ended;
    }
  }
  CHECK_EQ(ended, tried);
}

TEST("the kernel's nonces differ") {
  const transport::Nonce one = transport::draw_nonce();
  CHECK(std::memcmp(one.data(), transport::draw_nonce().data(), one.size()) != 0);
}
