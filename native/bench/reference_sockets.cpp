// The bound that drust's remote reads are measured against: what two processes and one blocking loopback TCP
// connection can do, with nothing in between. Written like C on purpose: no drust code, no allocation or
// branch in the timed loop that a hand-written program would not have.
//
//     reference_sockets round_trip REQUEST_BYTES REPLY_BYTES REPETITIONS
//         one send, one receive loop a round trip: {"median_ns", "p10_ns", "p90_ns"}
//     reference_sockets stream TOTAL_MIB CHUNK_BYTES REPETITIONS [whole]
//         one direction, sent and received CHUNK_BYTES at a time: {"bytes_per_s"} (median of the
//         repetitions); with `whole` into one buffer of TOTAL_MIB, as a program that keeps the bytes must,
//         instead of one chunk over and over
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "reference_sockets: %s: %s\n", what, std::strerror(errno));
  std::_Exit(1);
}

void send_all(int socket, const char* bytes, std::size_t count) {
  while (count > 0) {
    const ssize_t sent = ::send(socket, bytes, count, MSG_NOSIGNAL);
    if (sent <= 0) fail("send");
    bytes += sent;
    count -= static_cast<std::size_t>(sent);
  }
}

// False at the end of the stream.
bool receive_all(int socket, char* bytes, std::size_t count) {
  while (count > 0) {
    const ssize_t received = ::recv(socket, bytes, count, 0);
    if (received == 0) return false;
    if (received < 0) fail("recv");
    bytes += received;
    count -= static_cast<std::size_t>(received);
  }
  return true;
}

struct Ends {
  int socket;
  pid_t child;  // 0 in the child
};

// A connected pair: the parent's end and, in a child process, the other.
Ends fork_peer() {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* name = reinterpret_cast<sockaddr*>(&address);
  if (listener < 0 || ::bind(listener, name, size) != 0 || ::listen(listener, 1) != 0) fail("listen");
  if (::getsockname(listener, name, &size) != 0) fail("getsockname");
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  int socket = -1;
  if (child == 0) {
    socket = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) fail("accept4");
  } else {
    socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (socket < 0 || ::connect(socket, name, size) != 0) fail("connect");
  }
  const int one = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::close(listener);
  return {socket, child};
}

std::vector<double> round_trips(std::size_t request_bytes, std::size_t reply_bytes, std::size_t repetitions) {
  std::vector<char> request(request_bytes, 1);
  std::vector<char> reply(reply_bytes, 2);
  const Ends ends = fork_peer();
  if (ends.child == 0) {
    while (receive_all(ends.socket, request.data(), request_bytes))
      send_all(ends.socket, reply.data(), reply_bytes);
    std::_Exit(0);
  }
  std::vector<double> times_ns;
  for (std::size_t index = 0; index < repetitions + repetitions / 10; ++index) {
    const Clock::time_point start = Clock::now();
    send_all(ends.socket, request.data(), request_bytes);
    if (!receive_all(ends.socket, reply.data(), reply_bytes)) fail("the peer has gone");
    const std::chrono::duration<double, std::nano> taken = Clock::now() - start;
    if (index >= repetitions / 10) times_ns.push_back(taken.count());
  }
  ::close(ends.socket);
  ::waitpid(ends.child, nullptr, 0);
  return times_ns;
}

std::vector<double> streams(std::size_t total_bytes, std::size_t chunk_bytes, std::size_t repetitions,
                            bool whole) {
  const Ends ends = fork_peer();
  if (ends.child == 0) {
    std::vector<char> chunk(whole ? total_bytes : chunk_bytes, 3);
    char go = 0;
    while (receive_all(ends.socket, &go, 1)) {
      for (std::size_t done = 0; done < total_bytes; done += chunk_bytes) {
        const std::size_t bytes = std::min(chunk_bytes, total_bytes - done);
        send_all(ends.socket, chunk.data() + (whole ? done : 0), bytes);
      }
    }
    std::_Exit(0);
  }
  std::vector<char> chunk(whole ? total_bytes : chunk_bytes, 4);
  std::vector<double> times_ns;
  for (std::size_t index = 0; index < repetitions + 1; ++index) {
    const char go = 1;
    const Clock::time_point start = Clock::now();
    send_all(ends.socket, &go, 1);
    for (std::size_t done = 0; done < total_bytes; done += chunk_bytes) {
      const std::size_t bytes = std::min(chunk_bytes, total_bytes - done);
      if (!receive_all(ends.socket, chunk.data() + (whole ? done : 0), bytes)) fail("the peer has gone");
    }
    const std::chrono::duration<double, std::nano> taken = Clock::now() - start;
    if (index > 0) times_ns.push_back(taken.count());  // the first opens the windows
  }
  ::close(ends.socket);
  ::waitpid(ends.child, nullptr, 0);
  return times_ns;
}

double quantile(std::vector<double>& values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

std::size_t number(const char* text) { return static_cast<std::size_t>(std::strtoull(text, nullptr, 10)); }

}  // namespace

int main(int argc, char** argv) {
  const bool is_round_trip = argc == 5 && std::strcmp(argv[1], "round_trip") == 0;
  const bool is_stream =
      (argc == 5 || (argc == 6 && std::strcmp(argv[5], "whole") == 0)) && std::strcmp(argv[1], "stream") == 0;
  if (!is_round_trip && !is_stream) {
    std::fprintf(stderr,
                 "usage: reference_sockets round_trip REQUEST_BYTES REPLY_BYTES REPETITIONS\n"
                 "       reference_sockets stream TOTAL_MIB CHUNK_BYTES REPETITIONS [whole]\n");
    return 2;
  }
  const std::size_t first = number(argv[2]);
  const std::size_t second = number(argv[3]);
  const std::size_t repetitions = number(argv[4]);
  if (first == 0 || second == 0 || repetitions == 0) return 2;
  if (is_round_trip) {
    std::vector<double> times_ns = round_trips(first, second, repetitions);
    std::printf(
        "{\"benchmark\": \"reference_round_trip\", \"request_bytes\": %zu, \"reply_bytes\": %zu, "
        "\"repetitions\": %zu, \"median_ns\": %.0f, \"p10_ns\": %.0f, \"p90_ns\": %.0f}\n",
        first, second, repetitions, quantile(times_ns, 0.5), quantile(times_ns, 0.1),
        quantile(times_ns, 0.9));
    return 0;
  }
  const std::size_t total_bytes = first << 20;
  std::vector<double> times_ns = streams(total_bytes, second, repetitions, argc == 6);
  const double median_ns = quantile(times_ns, 0.5);
  std::printf(
      "{\"benchmark\": \"reference_stream\", \"total_bytes\": %zu, \"chunk_bytes\": %zu, \"whole\": %s, "
      "\"repetitions\": %zu, \"median_ns\": %.0f, \"p10_ns\": %.0f, \"p90_ns\": %.0f, \"bytes_per_s\": "
      "%.0f}\n",
      total_bytes, second, argc == 6 ? "true" : "false", repetitions, median_ns, quantile(times_ns, 0.1),
      quantile(times_ns, 0.9), static_cast<double>(total_bytes) * 1e9 / median_ns);
  return 0;
}
