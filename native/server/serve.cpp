#include "server/serve.hpp"

#include <system_error>
#include <utility>

#include "server/control_desk.hpp"
#include "server/forks.hpp"
#include "server/loop.hpp"
#include "transport/tcp.hpp"

namespace drust::server {

class Server::Loops {
 public:
  Loops(heap::Heap& heap, tasks::Queue& queue, Peers& peers, ServeOptions given)
      : options(std::move(given)),
        heap(heap),
        peers(peers),
        operations(heap, queue,
                   {[&peers](const GlobalPointer& block, std::uint64_t flags) {
                      flags == wire::FreeItem::kMade ? peers.free_made_later(block) : peers.free_later(block, false);
                    },
                    [&peers](const GlobalPointer& value) { peers.confirm_later(value); },
                    [&peers](Address block) { peers.drop_replica_later(block); }}),
        attendant(heap.partition(), operations, [this](const Attendant::Asker& asker, Answer answer) {
          loops[asker.loop]->answer_wait(asker.connection, std::move(answer));
        }) {}

  Status start() {
    if (options.token.size() != kTokenBytes)
      return Status(Code::bad_request, "a server needs a token of 32 bytes");
    if (options.threads == 0) return Status(Code::bad_request, "a server needs at least one thread");
    Result<std::unique_ptr<transport::Listener>> listening =
        transport::listen_tcp(options.host, options.port);
    if (!listening.ok()) return listening.status();
    listener = std::move(listening.value());
    port = listener->port();
    for (std::uint32_t index = 0; index < options.threads; ++index) {
      const std::uint32_t handshakes_max = (kHandshakesMax + options.threads - 1) / options.threads;
      loops.push_back(std::make_unique<Loop>(
          operations, desk, attendant, LoopOptions{index, handshakes_max, options.token, &options.log}));
      if (Status status = loops.back()->open(); !status.ok()) return status;
    }
    const auto place = [this](std::unique_ptr<transport::Stream> stream) {
      loops[next++ % loops.size()]->adopt(std::move(stream));
    };
    if (Status status = loops[0]->accept_from(*listener, place); !status.ok()) return status;
    try {
      for (auto& loop : loops) loop->start();
      attendant.start();
    } catch (const std::system_error& error) {
      return Status(Code::system, std::string("starting a serving thread: ") + error.what());
    }
    return {};
  }

  [[nodiscard]] bool is_forked() const noexcept { return fork_generation() != generation; }

  void stop() noexcept {
    attendant.stop();
    for (auto& loop : loops) loop->stop();
    desk.close();
    listener.reset();  // who comes now is refused at once
  }

  const std::uint32_t generation = fork_generation();
  ServeOptions options;  // constant once the loops run, as all below
  heap::Heap& heap;
  Peers& peers;
  Operations operations;
  Attendant attendant;
  ControlDesk desk;
  std::unique_ptr<transport::Listener> listener;  // the accepting loop's, while it runs
  std::uint16_t port = 0;
  std::vector<std::unique_ptr<Loop>> loops;
  std::size_t next = 0;  // the accepting loop's thread only
};

Result<std::unique_ptr<Server>> Server::start(heap::Heap& heap, tasks::Queue& queue, Peers& peers,
                                              ServeOptions options) {
  std::unique_ptr<Server> server(new Server());
  server->loops_ = std::make_unique<Loops>(heap, queue, peers, std::move(options));
  if (Status status = server->loops_->start(); !status.ok()) return status;
  return server;
}

Server::~Server() {
  stop();
  if (loops_ != nullptr && loops_->is_forked()) (void)loops_.release();  // its threads are the parent's
}

std::uint16_t Server::port() const noexcept { return loops_->port; }

Result<ControlRequest> Server::take_control(std::uint32_t timeout_ms) {
  return loops_->desk.take(timeout_ms);
}

void Server::reply_control(std::uint64_t id, std::vector<std::byte> body) {
  if (const auto asker = loops_->desk.settle(id))
    loops_->loops[asker->loop]->answer(asker->connection, std::move(body));
}

std::size_t Server::fail_records(ServerId lost, std::uint16_t incarnation) {
  loops_->operations.refuse_tasks(lost, incarnation);
  heap::Partition& partition = loops_->heap.partition();
  loops_->operations.bury([lost](sync::Who who) { return who.server() == lost; }, true);
  std::size_t failed = 0;
  partition.each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec != tasks::kRecordCodec) return;
    const tasks::Record* record = tasks::Queue::find_record(partition, block.pointer);
    if (record != nullptr && record->server == lost && tasks::Queue::condemn(loops_->heap, block.pointer)) ++failed;
  });
  return failed;
}

std::size_t Server::settle_records() {
  std::size_t settled = 0;
  loops_->heap.partition().each_live_block([&](const heap::BlockInfo& block) {
    if (block.codec == tasks::kRecordCodec && tasks::Queue::settle(loops_->heap, block.pointer)) ++settled;
  });
  return settled;
}

Replicas::Usage Server::close_replicas(ServerId lost, std::uint16_t incarnation) {
  return loops_->operations.replicas().close(lost, incarnation);
}

Replicas::Usage Server::promote(ServerId lost) { return loops_->operations.replicas().promote(lost); }

std::size_t Server::free_orphans(ServerId lost) {
  const std::vector<GlobalPointer> orphans = loops_->operations.replicas().orphans(lost);
  // Each alone: what they own that is not an orphan too may be owned by a version that others know.
  for (const GlobalPointer& orphan : orphans) loops_->operations.free_promoted(orphan, true);
  return orphans.size();
}

Result<Replicas::Usage> Server::protect(ServerId backup, ServerId server) {
  heap::Partition& partition = loops_->heap.partition();
  std::vector<Replica> all;
  if (server == partition.server()) {
    partition.each_live_block([&](const heap::BlockInfo& block) {
      const Result<heap::Block> found = partition.find(block.pointer.address, block.pointer.colour);
      if (!found.ok() || (found.value().header().flags.load() & heap::kReplicated) == 0) return;
      // Who owns it was known to the backup that was lost; here it is not.
      all.push_back({block.pointer, block.pointer, true});
    });
  } else {
    for (const Replicas::Version& version : loops_->operations.replicas().promoted(server))
      all.push_back({version.primary, version.local, version.is_confirmed});
  }
  const Result<std::uint64_t> bytes = loops_->peers.replicate_all(backup, all);
  if (!bytes.ok()) return bytes.status();
  return Replicas::Usage{all.size(), bytes.value()};
}

Replicas::Usage Server::replicas() const { return loops_->operations.replicas().usage(); }

std::vector<Replicas::Version> Server::replicas_of(ServerId server, std::size_t most) const {
  std::vector<Replicas::Version> kept = loops_->operations.replicas().promoted(server);
  if (kept.size() > most) kept.resize(most);
  return kept;
}

std::size_t Server::drop_unused_replicas(std::span<const Replicas::Version> kept_elsewhere) {
  const heap::Partition& partition = loops_->heap.partition();
  std::size_t dropped = 0;
  for (const Replicas::Version& kept : kept_elsewhere) {
    const Result<heap::Block> found = partition.find(kept.primary.address, kNoColour);
    // One of another colour that has replicas is the same block, written since: this may be its pre-image.
    // The very version may not be marked yet.
    const bool is_used = found.ok() && (found.value().header().state.load() == kept.primary.colour ||
                                        (found.value().header().flags.load() & heap::kHasReplica) != 0);
    if (is_used) continue;
    loops_->peers.drop_replica_later(kept.primary.address, kept.stamp + 1);
    ++dropped;
  }
  return dropped;
}

void Server::stop() noexcept {
  if (loops_ != nullptr && !loops_->is_forked()) loops_->stop();
}

}  // namespace drust::server
