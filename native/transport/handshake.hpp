// How two servers prove to each other, before anything else is parsed, that they hold the same token.
//
//     client                                   server
//       Hello {magic, version, server id, nonce_c}  ->
//                                              <-  Hello {magic, version, server id, nonce_s}
//       Proof {HMAC(token, "client" ...)}           ->
//                                              <-  Proof {code, HMAC(token, "server" ...)}
//
// A proof covers its direction's label, the protocol version, the server's id and both nonces, so it is worth
// nothing in the other direction, to another server or at another time. The client proves itself first: who
// cannot, learns nothing. The first 8 bytes (magic, version, role) never change between versions: each side
// reads them before it waits for the rest, so a peer of another version is told apart from a broken one, with
// both numbers. It authenticates the ends of a connection, it does not encrypt what follows: see contract.hpp
// for where TLS would sit.
//
// `Handshake` is a pure state machine over bytes: no socket, no clock; shake_hands() drives it over a stream,
// the server drives it from its event loop.
// Source: challenge-response as in ISO/IEC 9798-4 (mutual, keyed cryptographic check function); HMAC: RFC
// 2104.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/address.hpp"
#include "base/limits.hpp"
#include "base/status.hpp"
#include "transport/contract.hpp"

namespace drust::transport {

using Nonce = std::array<std::byte, 32>;
using Mac = std::array<std::byte, 32>;

enum class Role : std::uint8_t { client = 1, server = 2 };

struct Hello {
  static constexpr std::uint32_t kMagic = 0x54535244;  // "DRST"
  static constexpr std::size_t kPrefixBytes = 8;       // the part that every version understands
  std::uint32_t magic = kMagic;
  std::uint16_t version = kProtocolVersion;
  std::uint8_t role = 0;
  std::uint8_t reserved = 0;
  std::uint32_t server = 0;  // the client's: whom it wants; the server's: who it is
  std::uint32_t reserved_too = 0;
  Nonce nonce{};
};
static_assert(sizeof(Hello) == 48);

struct Proof {
  static constexpr std::uint32_t kMagic = 0x46525244;  // "DRRF"
  std::uint32_t magic = kMagic;
  std::uint8_t code = 0;  // drust::Code; not ok: a refusal, and no proof
  std::array<std::uint8_t, 3> reserved{};
  Mac mac{};
};
static_assert(sizeof(Proof) == 40);

[[nodiscard]] Mac prove(std::span<const std::byte> token, Role prover, ServerId server,
                        const Nonce& client_nonce, const Nonce& server_nonce);
// In time that does not depend on where they differ.
[[nodiscard]] bool is_equal(const Mac& left, const Mac& right) noexcept;

[[nodiscard]] Nonce draw_nonce();  // from the kernel's generator; ends the process if it has none

class Handshake {
 public:
  // `token` must outlive the handshake. `server`: whom the client wants, or who the server is.
  Handshake(Role role, std::span<const std::byte> token, ServerId server, const Nonce& nonce);

  // How many bytes receive() wants next; 0 when there is nothing more to come (done, or failed).
  [[nodiscard]] std::size_t wanted_bytes() const noexcept;
  // Takes exactly wanted_bytes(). Not ok: version_mismatch, unauthenticated, bad_request (no handshake at
  // all) or server_lost (another server answers there). Then the connection must be dropped after outgoing()
  // was sent: the server's last word to a client it refuses.
  Status receive(std::span<const std::byte> bytes);
  // What must be sent before waiting for more; empty if nothing. Valid until the next call.
  [[nodiscard]] std::span<const std::byte> take_outgoing();
  [[nodiscard]] bool is_done() const noexcept { return phase_ == Phase::done; }

 private:
  enum class Phase : std::uint8_t { prefix, hello, proof, done, failed };
  Status receive_prefix(const Hello& hello);
  Status receive_hello(std::span<const std::byte> bytes);
  Status receive_proof(const Proof& proof);
  void send(const void* message, std::size_t bytes);
  Status fail(Code code, std::string detail);

  Role role_;
  Phase phase_ = Phase::prefix;
  std::span<const std::byte> token_;
  ServerId server_;
  Hello mine_;
  Hello theirs_;
  std::vector<std::byte> outgoing_;
  std::vector<std::byte> taken_;
};

// The client's side over a stream: bounded by `timeout_ms` in all, however slowly the peer trickles.
Status shake_hands(Stream& stream, Handshake& handshake, std::uint32_t timeout_ms);

}  // namespace drust::transport
