#include "transport/handshake.hpp"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/ensure.hpp"

namespace drust::transport {
namespace {

// What a proof covers, in wire order. The label ends in its version so that a later scheme can never be
// confused with it.
struct Covered {
  std::array<char, 32> label{};
  std::uint16_t version = kProtocolVersion;
  std::uint16_t reserved = 0;
  std::uint32_t server = 0;
  Nonce client_nonce{};
  Nonce server_nonce{};
};
static_assert(sizeof(Covered) == 104);

Role other(Role role) noexcept { return role == Role::client ? Role::server : Role::client; }

}  // namespace

Mac prove(std::span<const std::byte> token, Role prover, ServerId server, const Nonce& client_nonce,
          const Nonce& server_nonce) {
  Covered covered;
  std::strncpy(covered.label.data(), prover == Role::client ? "drust client proof 1" : "drust server proof 1",
               covered.label.size() - 1);
  covered.server = server;
  covered.client_nonce = client_nonce;
  covered.server_nonce = server_nonce;
  std::array<unsigned char, sizeof(Covered)> message;
  std::memcpy(message.data(), &covered, sizeof covered);
  Mac mac;
  unsigned int mac_bytes = 0;
  const unsigned char* made = HMAC(EVP_sha256(), token.data(), static_cast<int>(token.size()), message.data(),
                                   message.size(), reinterpret_cast<unsigned char*>(mac.data()), &mac_bytes);
  ensure(made != nullptr && mac_bytes == mac.size(), "HMAC-SHA256 must be available");
  return mac;
}

bool is_equal(const Mac& left, const Mac& right) noexcept {
  return CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

Nonce draw_nonce() {
  Nonce nonce;
  ssize_t drawn = -1;
  do drawn = ::getrandom(nonce.data(), nonce.size(), 0);
  while (drawn < 0 && errno == EINTR);
  ensure(drawn == static_cast<ssize_t>(nonce.size()), "the kernel must have random bytes");
  return nonce;
}

Handshake::Handshake(Role role, std::span<const std::byte> token, ServerId server, const Nonce& nonce)
    : role_(role), token_(token), server_(server) {
  mine_.role = static_cast<std::uint8_t>(role);
  mine_.server = server;
  mine_.nonce = nonce;
  if (role == Role::client) send(&mine_, sizeof mine_);
}

std::size_t Handshake::wanted_bytes() const noexcept {
  switch (phase_) {
    case Phase::prefix: return Hello::kPrefixBytes;
    case Phase::hello: return sizeof(Hello) - Hello::kPrefixBytes;
    case Phase::proof: return sizeof(Proof);
    case Phase::done:
    case Phase::failed: break;
  }
  return 0;
}

Status Handshake::receive(std::span<const std::byte> bytes) {
  ensure(bytes.size() == wanted_bytes() && !bytes.empty(), "a handshake takes exactly what it wants");
  if (phase_ == Phase::prefix) {
    std::memcpy(static_cast<void*>(&theirs_), bytes.data(), bytes.size());
    return receive_prefix(theirs_);
  }
  if (phase_ == Phase::hello) return receive_hello(bytes);
  Proof proof;
  std::memcpy(&proof, bytes.data(), sizeof proof);
  return receive_proof(proof);
}

Status Handshake::receive_prefix(const Hello& hello) {
  if (hello.magic != Hello::kMagic) return fail(Code::bad_request, "the peer does not speak drust");
  if (hello.version != mine_.version) {
    if (role_ == Role::server) send(&mine_, sizeof mine_);  // so that the client can say the same
    return fail(Code::version_mismatch, "the peer speaks protocol version " + std::to_string(hello.version) +
                                            ", this is version " + std::to_string(mine_.version));
  }
  if (hello.role != static_cast<std::uint8_t>(other(role_)) || hello.reserved != 0) {
    return fail(Code::bad_request, "the peer has the wrong role in the handshake");
  }
  phase_ = Phase::hello;
  return {};
}

Status Handshake::receive_hello(std::span<const std::byte> bytes) {
  std::memcpy(reinterpret_cast<std::byte*>(&theirs_) + Hello::kPrefixBytes, bytes.data(), bytes.size());
  if (theirs_.reserved_too != 0) return fail(Code::bad_request, "the peer's greeting is malformed");
  if (role_ == Role::server) send(&mine_, sizeof mine_);
  if (theirs_.server != server_) {
    return fail(Code::server_lost,
                role_ == Role::client
                    ? "server " + std::to_string(theirs_.server) + " answers where server " +
                          std::to_string(server_) + " was"
                    : "a client looks for server " + std::to_string(theirs_.server) + " here");
  }
  if (role_ == Role::client) {
    Proof proof;
    proof.mac = prove(token_, Role::client, server_, mine_.nonce, theirs_.nonce);
    send(&proof, sizeof proof);
  }
  phase_ = Phase::proof;
  return {};
}

Status Handshake::receive_proof(const Proof& proof) {
  if (proof.magic != Proof::kMagic || proof.reserved != decltype(proof.reserved){})
    return fail(Code::bad_request, "the peer sent no proof");
  const Nonce& client_nonce = role_ == Role::client ? mine_.nonce : theirs_.nonce;
  const Nonce& server_nonce = role_ == Role::client ? theirs_.nonce : mine_.nonce;
  const Mac expected = prove(token_, other(role_), server_, client_nonce, server_nonce);
  const bool is_genuine = proof.code == 0 && is_equal(proof.mac, expected);
  if (role_ == Role::client) {
    if (proof.code != 0) return fail(Code::unauthenticated, "the server refused our token");
    if (!is_genuine) return fail(Code::unauthenticated, "the server does not hold our token");
    phase_ = Phase::done;
    return {};
  }
  Proof answer;
  if (is_genuine) {
    answer.mac = prove(token_, Role::server, server_, client_nonce, server_nonce);
  } else {
    answer.code = static_cast<std::uint8_t>(Code::unauthenticated);
  }
  send(&answer, sizeof answer);
  if (!is_genuine) return fail(Code::unauthenticated, "the client does not hold our token");
  phase_ = Phase::done;
  return {};
}

void Handshake::send(const void* message, std::size_t bytes) {
  const auto* start = static_cast<const std::byte*>(message);
  outgoing_.insert(outgoing_.end(), start, start + bytes);
}

Status Handshake::fail(Code code, std::string detail) {
  phase_ = Phase::failed;
  return Status(code, std::move(detail));
}

std::span<const std::byte> Handshake::take_outgoing() {
  taken_.swap(outgoing_);
  outgoing_.clear();
  return taken_;
}

Status shake_hands(Stream& stream, Handshake& handshake, std::uint32_t timeout_ms) {
  const std::int64_t end_ms = stream.now_ms() + timeout_ms;
  std::array<std::byte, sizeof(Hello)> buffer;
  stream.bound_silence(timeout_ms);
  std::int64_t bound_ms = timeout_ms;
  for (;;) {
    if (const std::span<const std::byte> outgoing = handshake.take_outgoing(); !outgoing.empty()) {
      iovec part{const_cast<std::byte*>(outgoing.data()), outgoing.size()};
      if (Status status = stream.send_all({&part, 1}); !status.ok()) return status;
    }
    const std::size_t wanted = handshake.wanted_bytes();
    if (wanted == 0) return {};
    for (std::size_t received = 0; received < wanted;) {
      const std::int64_t left_ms = end_ms - stream.now_ms();
      if (left_ms <= 0)
        return Status(Code::timed_out, "no handshake within " + std::to_string(timeout_ms) + " ms");
      if (left_ms < bound_ms) {  // a peer that trickles, or falls silent after its first word
        bound_ms = left_ms;
        stream.bound_silence(static_cast<std::uint32_t>(left_ms));
      }
      const iovec part{buffer.data() + received, wanted - received};
      const Result<std::size_t> got = stream.receive_some({&part, 1});
      if (!got.ok()) return got.status();
      received += got.value();
    }
    if (Status status = handshake.receive({buffer.data(), wanted}); !status.ok()) return status;
  }
}

}  // namespace drust::transport
