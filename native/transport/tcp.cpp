#include "transport/tcp.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "base/limits.hpp"
#include "base/patience.hpp"

namespace drust::transport {
namespace {

using Clock = std::chrono::steady_clock;

// For bounds of seconds: some milliseconds coarse, and many times cheaper than the exact clock.
std::int64_t coarse_ms() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

std::string text_of(int error) { return std::generic_category().message(error); }

bool set_option(int descriptor, int level, int name, int value) noexcept {
  return ::setsockopt(descriptor, level, name, &value, sizeof value) == 0;
}

// Owns a descriptor. -1: none.
class Descriptor {
 public:
  explicit Descriptor(int value = -1) noexcept : value_(value) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  [[nodiscard]] int get() const noexcept { return value_; }
  int release() noexcept { return std::exchange(value_, -1); }
  void reset(int value = -1) noexcept {
    if (value_ >= 0) ::close(value_);
    value_ = value;
  }

 private:
  int value_;
};

// Notices an unplugged peer within kPeerTimeoutMs whether or not bytes of ours are on the way. Keepalive
// probes start after one silent second; the user timeout also decides how long they may go unanswered.
void set_liveness(int descriptor) noexcept {
  set_option(descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kPeerTimeoutMs));
  set_option(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, 1);
  set_option(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set_option(descriptor, IPPROTO_TCP, TCP_KEEPCNT, static_cast<int>(kPeerTimeoutMs / 1000) - 1);
}

class TcpStream final : public Stream {
 public:
  explicit TcpStream(Descriptor socket) noexcept : socket_(std::move(socket)) {}

  Status send_all(std::span<iovec> parts) override {
    Waiting waiting(silence_ms_);
    for (parts = drop_front(parts, 0); !parts.empty();) {
      const ssize_t sent = send_parts(parts, 0);
      if (sent > 0) {
        parts = drop_front(parts, static_cast<std::size_t>(sent));
        waiting.restart();
      } else if (Status status = go_on_after(errno, POLLOUT, waiting); !status.ok()) {
        return status;
      }
    }
    return {};
  }

  // The beginning of an answer, which a peer nearby has soon.
  Result<std::size_t> receive_some(std::span<const iovec> parts) override {
    ssize_t received = -1;
    const auto look = [&] {
      received = receive_parts(parts, MSG_DONTWAIT);
      return received > 0;
    };
    return patience_.wait(look) ? Result<std::size_t>(static_cast<std::size_t>(received)) : receive(parts, 0);
  }

  Status receive_all(std::span<iovec> parts) override {
    for (parts = drop_front(parts, 0); !parts.empty();) {
      const Result<std::size_t> received = receive(parts, MSG_WAITALL);
      if (!received.ok()) return received.status();
      parts = drop_front(parts, received.value());
    }
    return {};
  }

  void bound_silence(std::uint32_t silence_ms) noexcept override {
    silence_ms_ = silence_ms;
    const timeval limit{static_cast<time_t>(silence_ms / 1000),
                        static_cast<suseconds_t>((silence_ms % 1000) * 1000)};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  }

  Transfer try_send(std::span<const iovec> parts, bool more) noexcept override {
    for (;;) {
      const ssize_t sent = send_parts(parts, MSG_DONTWAIT | (more ? MSG_MORE : 0));
      if (sent >= 0) return {Flow::moved, 0, static_cast<std::size_t>(sent)};
      if (errno == EINTR) continue;
      return errno == EAGAIN ? Transfer{Flow::would_block, 0, 0} : Transfer{Flow::failed, errno, 0};
    }
  }

  Transfer try_receive(std::span<const iovec> parts) noexcept override {
    for (;;) {
      const ssize_t received = receive_parts(parts, MSG_DONTWAIT);
      if (received > 0) return {Flow::moved, 0, static_cast<std::size_t>(received)};
      if (received == 0) return {Flow::ended, 0, 0};
      if (errno == EINTR) continue;
      return errno == EAGAIN ? Transfer{Flow::would_block, 0, 0} : Transfer{Flow::failed, errno, 0};
    }
  }

  bool is_idle_and_open() noexcept override {
    std::byte one;
    const ssize_t received = ::recv(socket_.get(), &one, 1, MSG_PEEK | MSG_DONTWAIT);
    return received < 0 && errno == EAGAIN;
  }

  std::string peer() const override {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    char host[NI_MAXHOST];
    char port[NI_MAXSERV];
    auto* start = reinterpret_cast<sockaddr*>(&address);
    if (::getpeername(socket_.get(), start, &size) != 0 ||
        ::getnameinfo(start, size, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) !=
            0) {
      return "a peer that is gone";
    }
    return std::string(host) + ":" + port;
  }

  int descriptor() const noexcept override { return socket_.get(); }
  void end_sending() noexcept override { ::shutdown(socket_.get(), SHUT_WR); }

 private:
  // How long one call has been waiting since the last byte moved.
  struct Waiting {
    explicit Waiting(std::uint32_t silence) noexcept : silence_ms(silence) { restart(); }
    void restart() noexcept { since_ms = coarse_ms(); }
    [[nodiscard]] std::int64_t left_ms() const noexcept { return silence_ms - (coarse_ms() - since_ms); }
    std::uint32_t silence_ms;
    std::int64_t since_ms;
  };

  // One piece is spared the copying of a msghdr.
  ssize_t send_parts(std::span<const iovec> parts, int flags) noexcept {
    flags |= MSG_NOSIGNAL;
    if (parts.size() == 1) return ::send(socket_.get(), parts[0].iov_base, parts[0].iov_len, flags);
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts.data());
    message.msg_iovlen = parts.size();
    return ::sendmsg(socket_.get(), &message, flags);
  }

  ssize_t receive_parts(std::span<const iovec> parts, int flags) noexcept {
    if (parts.size() == 1) return ::recv(socket_.get(), parts[0].iov_base, parts[0].iov_len, flags);
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts.data());
    message.msg_iovlen = parts.size();
    return ::recvmsg(socket_.get(), &message, flags);
  }

  Result<std::size_t> receive(std::span<const iovec> parts, int flags) {
    Waiting waiting(silence_ms_);
    for (;;) {
      const ssize_t received = receive_parts(parts, flags);
      if (received > 0) return static_cast<std::size_t>(received);
      if (received == 0) return Status(Code::server_lost, "the peer closed the connection");
      if (Status status = go_on_after(errno, POLLIN, waiting); !status.ok()) return status;
    }
  }

  // ok: try again. A signal must not start the socket's own timeout anew, so the rest is waited for by
  // poll().
  Status go_on_after(int error, short events, const Waiting& waiting) {
    if (error == EAGAIN) return silent(waiting.silence_ms);
    if (error != EINTR) return Status(Code::server_lost, "connection lost: " + text_of(error));
    for (;;) {
      const std::int64_t left_ms = waiting.silence_ms == 0 ? -1 : waiting.left_ms();
      if (waiting.silence_ms != 0 && left_ms <= 0) return silent(waiting.silence_ms);
      pollfd wanted{socket_.get(), events, 0};
      const int ready = ::poll(&wanted, 1, static_cast<int>(left_ms));
      if (ready > 0) return {};
      if (ready < 0 && errno != EINTR) return system_error("poll");
    }
  }

  static Status silent(std::uint32_t silence_ms) {
    return Status(Code::timed_out, "the peer has been silent for " + std::to_string(silence_ms) + " ms");
  }

  Descriptor socket_;
  std::uint32_t silence_ms_ = 0;  // 0: unbounded; used by the thread that holds the stream, as the next
  Patience patience_;             // with what is asked for and has not come yet
};

class TcpListener final : public Listener {
 public:
  TcpListener(Descriptor socket, std::uint16_t port) noexcept
      : socket_(std::move(socket)), spare_(::open("/dev/null", O_RDONLY | O_CLOEXEC)), port_(port) {}

  Result<std::unique_ptr<Stream>> try_accept() override {
    for (;;) {
      Descriptor accepted(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (accepted.get() >= 0) {
        set_liveness(accepted.get());
        return std::unique_ptr<Stream>(std::make_unique<TcpStream>(std::move(accepted)));
      }
      if (errno == EAGAIN) return std::unique_ptr<Stream>();
      if (errno == EMFILE || errno == ENFILE) {
        // Out of descriptors: turn one caller away with the spare, or the listener would stay readable and
        // spin.
        spare_.reset();
        Descriptor(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC)).reset();
        spare_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
        return Status(Code::full, "out of file descriptors: a connection was refused");
      }
      // Everything else is about a connection that went away before it was accepted.
      if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) return system_error("accept4");
    }
  }

  int descriptor() const noexcept override { return socket_.get(); }
  std::uint16_t port() const noexcept override { return port_; }

 private:
  Descriptor socket_;
  Descriptor spare_;  // used by the accepting thread alone
  std::uint16_t port_;
};

struct AddressList {
  addrinfo* first = nullptr;
  AddressList() = default;
  AddressList(const AddressList&) = delete;
  AddressList& operator=(const AddressList&) = delete;
  ~AddressList() {
    if (first != nullptr) ::freeaddrinfo(first);
  }
};

Status resolve(const std::string& host, std::uint16_t port, int flags, AddressList& addresses) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | flags;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &addresses.first);
  if (error == 0) return {};
  return Status(Code::bad_request, "'" + host + "' is not a numeric address: " + ::gai_strerror(error));
}

}  // namespace

Result<std::unique_ptr<Stream>> connect_tcp(const std::string& host, std::uint16_t port,
                                            std::uint32_t timeout_ms) {
  AddressList addresses;
  if (Status status = resolve(host, port, 0, addresses); !status.ok()) return status;
  const std::string place = host + ":" + std::to_string(port);
  const addrinfo& address = *addresses.first;
  Descriptor socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) return system_error("socket");
  set_liveness(socket.get());
  // On Linux the send timeout also bounds connect(): EINPROGRESS when it has passed.
  const int descriptor = socket.get();
  auto stream = std::make_unique<TcpStream>(std::move(socket));
  stream->bound_silence(timeout_ms);
  if (::connect(descriptor, address.ai_addr, address.ai_addrlen) == 0)
    return std::unique_ptr<Stream>(std::move(stream));
  int error = errno;
  if (error == EINTR) {  // the attempt goes on in the kernel
    const Clock::time_point end = Clock::now() + std::chrono::milliseconds(timeout_ms);
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
      pollfd wanted{descriptor, POLLOUT, 0};
      const int ready = left > 0 ? ::poll(&wanted, 1, static_cast<int>(left)) : 0;
      if (ready < 0 && errno == EINTR) continue;
      error = EINPROGRESS;
      socklen_t size = sizeof error;
      if (ready > 0) ::getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size);
      break;
    }
    if (error == 0) return std::unique_ptr<Stream>(std::move(stream));
  }
  if (error == EINPROGRESS || error == EAGAIN) {
    return Status(Code::server_lost,
                  "no answer from " + place + " within " + std::to_string(timeout_ms) + " ms");
  }
  return Status(Code::server_lost, "cannot connect to " + place + ": " + text_of(error));
}

Result<std::unique_ptr<Listener>> listen_tcp(const std::string& host, std::uint16_t port) {
  AddressList addresses;
  if (Status status = resolve(host, port, AI_PASSIVE, addresses); !status.ok()) return status;
  const addrinfo& address = *addresses.first;
  Descriptor socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.get() < 0) return system_error("socket");
  set_option(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1);  // a restarted server takes its port back at once
  if (::bind(socket.get(), address.ai_addr, address.ai_addrlen) != 0) return system_error("bind");
  if (::listen(socket.get(), SOMAXCONN) != 0) return system_error("listen");
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return system_error("getsockname");
  const in_port_t chosen = bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                                       : reinterpret_cast<sockaddr_in&>(bound).sin_port;
  return std::unique_ptr<Listener>(std::make_unique<TcpListener>(std::move(socket), ntohs(chosen)));
}

std::unique_ptr<Stream> adopt_socket(int descriptor) {
  return std::make_unique<TcpStream>(Descriptor(descriptor));
}

}  // namespace drust::transport
