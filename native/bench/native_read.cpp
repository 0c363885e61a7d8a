// A remote read as drust does it: Peers::read_block against a Server in another process, over loopback TCP.
//
//     native_read BLOCK_BYTES REPETITIONS     {"median_ns", "p10_ns", "p90_ns", "bytes_per_s"}
//
// The time of a read includes allocating its destination in this partition and publishing the copy; freeing
// it is not timed. Compare with `reference_sockets round_trip 72 BLOCK_BYTES+112 N` (the same bytes on the
// wire) and `reference_sockets stream`, run on the same machine at the same time.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "heap/heap.hpp"
#include "heap/partition.hpp"
#include "server/peers.hpp"
#include "server/serve.hpp"
#include "tasks/queue.hpp"

using namespace drust;

namespace {

constexpr std::uint64_t kHeapBytes = 1ULL << 30;
const server::Token kToken(kTokenBytes, std::byte{42});

struct Offer {
  std::uint16_t port;
  GlobalPointer block;
};

[[noreturn]] void fail(const char* what, const Status& status) {
  std::fprintf(stderr, "native_read: %s: %s\n", what, status.detail().c_str());
  std::_Exit(1);
}

template <class T>
T must(Result<T> result, const char* what) {
  if (!result.ok()) fail(what, result.status());
  return std::move(result.value());
}

// One server's partition with this process in it.
struct Host {
  std::unique_ptr<heap::Partition> partition;
  std::unique_ptr<heap::Heap> heap;
  std::unique_ptr<server::Peers> peers;
  explicit Host(ServerId id) {
    heap::CreateOptions options;
    options.server = id;
    options.heap_bytes = kHeapBytes;
    options.warm_bytes = kHeapBytes;
    partition = must(heap::Partition::create(options), "creating a partition");
    const auto pid = static_cast<std::uint32_t>(::getpid());
    const auto process =
        must(partition->claim_process(heap::ProcessKind::server, pid), "claiming a process slot");
    heap = std::make_unique<heap::Heap>(*partition, process);
    peers = std::make_unique<server::Peers>(*heap, server::PeersOptions{kToken});
  }
};

// The child: serves one block until the parent closes its end of `until`.
[[noreturn]] void serve(std::uint64_t block_bytes, int offer_pipe, int until) {
  Host host(1);
  tasks::Queue queue(*host.heap);
  server::ServeOptions options;
  options.token = kToken;
  auto server = must(server::Server::start(*host.heap, queue, *host.peers, options), "starting the server");
  heap::BlockShape shape;
  const std::uint64_t buffers[1] = {block_bytes};
  shape.buffer_bytes = buffers;
  const Address address = must(host.heap->allocate(shape), "allocating");
  std::memset(heap::Block(host.partition->writable(address.offset_bytes())).buffer(0).data(), 7, block_bytes);
  const Offer offer{server->port(), host.heap->publish(address)};
  if (::write(offer_pipe, &offer, sizeof offer) != sizeof offer) std::_Exit(1);
  char end = 0;
  while (::read(until, &end, 1) > 0) {
  }
  server->stop();
  std::_Exit(0);
}

double quantile(std::vector<double>& values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t block_bytes = argc == 3 ? std::strtoull(argv[1], nullptr, 10) : 0;
  const std::uint64_t repetitions = argc == 3 ? std::strtoull(argv[2], nullptr, 10) : 0;
  if (block_bytes == 0 || repetitions == 0) {
    std::fprintf(stderr, "usage: native_read BLOCK_BYTES REPETITIONS\n");
    return 2;
  }
  int offers[2];
  int until[2];
  if (::pipe(offers) != 0 || ::pipe(until) != 0) fail("pipe", system_error("pipe"));
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(until[1]);
    serve(block_bytes, offers[1], until[0]);
  }
  ::close(offers[1]);
  ::close(until[0]);
  Offer offer{};
  if (::read(offers[0], &offer, sizeof offer) != sizeof offer) return 1;
  {
    Host host(2);
    host.partition->set_endpoint(1, {1, "127.0.0.1", offer.port});
    std::vector<double> times_ns;
    std::vector<GlobalPointer> elsewhere;
    double first_ns = 0;
    for (std::uint64_t index = 0; index < repetitions + repetitions / 10 + 1; ++index) {
      const auto start = std::chrono::steady_clock::now();
      const GlobalPointer copy = must(host.peers->read_block(offer.block), "reading");
      const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
      if (index == 0) first_ns = taken.count();
      if (index > repetitions / 10) times_ns.push_back(taken.count());
      if (!host.heap->free(copy, elsewhere).ok()) return 1;
    }
    const double median_ns = quantile(times_ns, 0.5);
    std::printf(
        "{\"benchmark\": \"native_read\", \"block_bytes\": %llu, \"repetitions\": %llu, \"median_ns\": %.0f, "
        "\"p10_ns\": %.0f, \"p90_ns\": %.0f, \"first_ns\": %.0f, \"bytes_per_s\": %.0f}\n",
        static_cast<unsigned long long>(block_bytes), static_cast<unsigned long long>(repetitions), median_ns,
        quantile(times_ns, 0.1), quantile(times_ns, 0.9), first_ns,
        static_cast<double>(block_bytes) * 1e9 / median_ns);
  }
  ::close(until[1]);
  ::waitpid(child, nullptr, 0);
  return 0;
}
