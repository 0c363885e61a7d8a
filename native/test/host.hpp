// One server of a test: a partition, its heap and queue, connections to others, and on demand the serving
// threads. Several of them in one process stand for several hosts; bytes between them really cross TCP.
#pragma once

#include <unistd.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/ensure.hpp"
#include "heap/heap.hpp"
#include "heap/partition.hpp"
#include "protocol/wire.hpp"
#include "server/peers.hpp"
#include "server/serve.hpp"
#include "tasks/queue.hpp"

namespace drust::test {

inline const server::Token& test_token() {
  static const server::Token token(kTokenBytes, std::byte{42});
  return token;
}

inline std::vector<std::byte> pattern(std::size_t count, unsigned seed = 0) {
  std::vector<std::byte> bytes(count);
  for (std::size_t index = 0; index < count; ++index) {
    bytes[index] = static_cast<std::byte>((index * 31 + index / 251 + seed) & 0xff);
  }
  return bytes;
}

struct Host {
  std::unique_ptr<heap::Partition> partition;
  std::unique_ptr<heap::Heap> heap;
  std::unique_ptr<tasks::Queue> queue;
  std::unique_ptr<server::Peers> peers;
  std::unique_ptr<server::Server> server;
  std::mutex mutex;              // protects log
  std::vector<std::string> log;  // what the serving threads said

  explicit Host(ServerId id, std::uint64_t heap_bytes = 64ULL << 20, server::Token token = test_token(),
                bool replicates_all = true) {
    heap::CreateOptions options;
    options.server = id;
    options.heap_bytes = heap_bytes;
    options.replicates_all = replicates_all;
    auto made = heap::Partition::create(options);
    ensure(made.ok(), "a test needs a partition");
    partition = std::move(made.value());
    const auto process =
        partition->claim_process(heap::ProcessKind::server, static_cast<std::uint32_t>(::getpid()));
    ensure(process.ok(), "a test needs a process slot");
    heap = std::make_unique<heap::Heap>(*partition, process.value());
    queue = std::make_unique<tasks::Queue>(*heap);
    peers = std::make_unique<server::Peers>(*heap, server::PeersOptions{std::move(token)});
  }
  ~Host() {
    server.reset();
    peers.reset();
  }

  Status serve(std::uint32_t threads = 2, std::uint16_t port = 0) {
    server::ServeOptions options;
    options.port = port;
    options.threads = threads;
    options.token = test_token();
    options.log = [this](const std::string& line) {
      const std::lock_guard<std::mutex> lock(mutex);
      log.push_back(line);
    };
    auto started = server::Server::start(*heap, *queue, *peers, options);
    if (!started.ok()) return started.status();
    server = std::move(started.value());
    return {};
  }
  void know(ServerId id, std::uint16_t port, std::uint64_t epoch = 1) {
    partition->set_endpoint(id, {epoch, "127.0.0.1", port});
  }
  void know(const Host& other, std::uint64_t epoch = 1) {
    know(other.partition->server(), other.server->port(), epoch);
  }

  // A live block with one buffer of these bytes.
  GlobalPointer make(const std::vector<std::byte>& bytes, std::uint32_t codec = 1) {
    const std::uint64_t sizes[1] = {bytes.size()};
    heap::BlockShape shape;
    shape.codec = codec;
    shape.buffer_bytes = sizes;
    const auto address = heap->allocate(shape);
    ensure(address.ok(), "a test needs room");
    std::memcpy(block(address.value()).buffer(0).data(), bytes.data(), bytes.size());
    return heap->publish(address.value());
  }
  // A live block without buffers that owns `children`.
  GlobalPointer make_parent(const std::vector<GlobalPointer>& children) {
    heap::BlockShape shape;
    shape.child_count = static_cast<std::uint32_t>(children.size());
    const auto address = heap->allocate(shape);
    ensure(address.ok(), "a test needs room");
    for (std::size_t index = 0; index < children.size(); ++index) {
      const GlobalPointer& child = children[index];
      block(address.value()).children()[index] = {child.address.raw(), child.colour, child.extent_bytes, 0};
    }
    return heap->publish(address.value());
  }
  [[nodiscard]] heap::Block block(Address address) const {
    return heap::Block(partition->writable(address.offset_bytes()));
  }
  // The bytes of buffer 0, or none if that version is not live.
  [[nodiscard]] std::vector<std::byte> bytes(const GlobalPointer& pointer) const {
    const auto found = partition->find(pointer.address, pointer.colour);
    if (!found.ok()) return {};
    const auto buffer = found.value().buffer(0);
    return {buffer.begin(), buffer.end()};
  }
  [[nodiscard]] bool is_live(const GlobalPointer& pointer) const {
    return partition->find(pointer.address, pointer.colour).ok();
  }
  [[nodiscard]] std::uint64_t counted(heap::Counter counter) const {
    return partition->counters()[static_cast<std::size_t>(counter)];
  }
};

inline wire::RequestHeader request(wire::Operation operation, const GlobalPointer& pointer = {},
                                   std::uint64_t body_bytes = 0, const wire::Region& region = {}) {
  wire::RequestHeader header;
  header.operation = static_cast<std::uint8_t>(operation);
  header.body_bytes = body_bytes;
  header.address = pointer.address.raw();
  header.colour = pointer.colour;
  header.extent_bytes = pointer.extent_bytes;
  header.region = region;
  return header;
}

}  // namespace drust::test
