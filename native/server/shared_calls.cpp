// Steps at the shared objects of this server, for processes of others: what those of this host do themselves.
//
// A peer names a hold, so that it can reach what it holds and nothing else; that it speaks for the process it names is
// believed, as all that an authenticated server says of its own processes is.
#include <algorithm>
#include <cstring>

#include "heap/shared.hpp"
#include "server/operations.hpp"
#include "server/snapshot.hpp"
#include "sync/atomic.hpp"
#include "sync/bury.hpp"
#include "sync/channel.hpp"
#include "sync/dict.hpp"
#include "sync/lock.hpp"

namespace drust::server {
namespace {

using wire::SharedAnswer;
using wire::SharedVerb;

Answer refused(Code code, const char* why) {
  Answer answer;
  answer.status = Status(code, why);
  return answer;
}

Answer words_of(std::uint64_t first, std::uint64_t second = 0, std::uint64_t third = 0) {
  Answer answer;
  answer.pointer = {Address(first), second, third};
  return answer;
}

SharedWait wait_of(const wire::RequestHeader& header, const GlobalPointer& object) noexcept {
  SharedWait wait;
  wait.object = object;
  wait.verb = static_cast<SharedVerb>(header.argument);
  wait.who = sync::Who(header.region.offset_bytes);
  wait.token = header.region.chunk_bytes;
  wait.wait_ms = std::min<std::uint32_t>(static_cast<std::uint32_t>(header.region.count), kSharedReplyMs);
  wait.recovers = (header.region.count & wire::SharedOperand::kRecover) != 0;
  wait.version = header.region.stride_bytes;
  return wait;
}

// Of a request that waits until an atomic has another value than `version`: that value, or "not yet".
bool look_at_atomic(const SharedWait& wait, sync::AtomicWords& atomic, bool is_over, Answer& answer) {
  const std::uint64_t value = atomic.value.load();
  const bool has_changed = value != wait.version;
  if (!has_changed && !is_over) return false;
  atomic.remote_wait.fetch_sub(1);
  answer = words_of(static_cast<std::uint64_t>(has_changed ? SharedAnswer::locked : SharedAnswer::waiting), value);
  return has_changed;
}

Answer wait_for_atomic(const wire::RequestHeader& header, const GlobalPointer& object, sync::AtomicWords& atomic) {
  SharedWait wait;
  wait.object = object;
  wait.verb = SharedVerb::step;
  wait.version = header.region.chunk_bytes;
  wait.wait_ms = std::min<std::uint32_t>(static_cast<std::uint32_t>(header.region.count), kSharedReplyMs);
  atomic.remote_wait.fetch_add(1);  // first: whoever changes the value from here on rings
  Answer answer;
  if (look_at_atomic(wait, atomic, wait.wait_ms == 0, answer) || wait.wait_ms == 0) return answer;
  answer.kind = Answer::Kind::waits;
  answer.wait = wait;
  return answer;
}

// Whether this very thread has the lock, or reads the value.
bool is_again(const sync::LockWords& lock, const SharedWait& wait) {
  if (sync::look(lock).who() == wait.who && lock.token.load() == wait.token) return true;
  const sync::RwLockWords* both = sync::readable(lock);
  return both != nullptr && both->readers.find(wait.who, wait.token).has_value();
}

}  // namespace

Answer Operations::shared(const wire::RequestHeader& header, Intake& intake) {
  heap::Partition& partition = heap_.partition();
  const auto verb = static_cast<SharedVerb>(header.argument);
  const wire::Region& operands = header.region;
  if (verb == SharedVerb::bury) {
    const sync::Who dead(operands.offset_bytes);
    if (dead.server() == server()) return refused(Code::bad_request, "only this server knows who died here");
    bury(dead);
    return {};
  }
  std::uint32_t role = 0;
  const GlobalPointer hold{Address(header.address), header.colour, header.extent_bytes};
  const GlobalPointer object = heap::find_held(partition, hold, &role);
  if (object.is_null()) return refused(Code::not_found, "the shared object is gone");
  switch (verb) {
    case SharedVerb::hold: {
      const Result<GlobalPointer> made = heap::make_hold(heap_, object, role);
      if (!made.ok()) return refused(made.status().code(), "there is no room for another hold");
      heap_.set_owner(made.value(), heap::owner_word(heap::OwnerKind::none, {}));
      Answer answer;
      answer.pointer = made.value();
      return answer;
    }
    case SharedVerb::step: {
      auto* atomic = sync::find<sync::AtomicWords>(partition, object);
      if (atomic == nullptr || operands.offset_bytes >= static_cast<std::uint64_t>(sync::Step::count_)) break;
      const auto step = static_cast<sync::Step>(operands.offset_bytes);
      if (step == sync::Step::notify) sync::notify(partition, *atomic);
      if (step == sync::Step::wait) return wait_for_atomic(header, object, *atomic);
      return words_of(0, sync::apply(atomic->value, step, operands.chunk_bytes, operands.count));
    }
    case SharedVerb::lock: return lock_shared(header, object);
    case SharedVerb::unlock: return unlock_shared(header, object, intake);
    case SharedVerb::send: return send_shared(header, object, intake);
    case SharedVerb::receive: return receive_shared(header, object);
    case SharedVerb::dict: return step_dict(header, object, intake);
    case SharedVerb::abandon: return abandon_shared(wait_of(header, object));
    case SharedVerb::read: return read_shared(header, object);
    case SharedVerb::unread: {
      auto* lock = sync::find<sync::RwLockWords>(partition, object);
      if (lock == nullptr) break;
      const auto slot = lock->readers.find(sync::Who(operands.offset_bytes), operands.chunk_bytes);
      if (!slot) return refused(Code::stale, "this thread does not read the value any more");
      sync::end_read(partition, *lock, *slot);
      return {};
    }
    case SharedVerb::bury:
    case SharedVerb::count_: break;
  }
  return refused(Code::bad_request, "the shared object is of another kind");
}

void Operations::bury(const sync::IsDead& is_dead, bool lost) {
  sync::bury_everywhere(heap_, is_dead);
  std::vector<GlobalPointer> remote;
  sync::free_unopened(heap_, is_dead, lost, remote);
  for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
}

void Operations::bury(sync::Who dead) {
  {  // first: a message that it still receives meanwhile is found by the look, or by who gave it
    const std::lock_guard<std::mutex> lock(buried_mutex_);
    buried_.push_back(dead);
    if (buried_.size() > kBuriedKept) buried_.pop_front();
  }
  bury([dead](sync::Who who) { return who == dead; }, false);
}

void Operations::drop(const Answer& answer) {
  const Result<heap::Block> found = heap_.partition().find(answer.block.address, answer.block.colour);
  if (answer.kind != Answer::Kind::served || !found.ok()) return;
  if (heap::owner_kind(found.value().header().owner.load()) != heap::OwnerKind::receiver) return;
  std::vector<GlobalPointer> remote;
  static_cast<void>(heap_.free(answer.block, remote));
  for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
}

void Operations::serve_value(const GlobalPointer& value, Answer& answer) {
  const Result<heap::Block> found = heap_.partition().find(value.address, value.colour);
  if (!found.ok()) return;
  answer.kind = Answer::Kind::served;
  answer.block = value;
  answer.head_bytes = sizeof(heap::BlockHeader);
  heap::BlockHeader snapshot{};
  snapshot.state.store(value.colour, std::memory_order_relaxed);
  take_snapshot(found.value().header(), snapshot);
  std::memcpy(answer.head.data(), static_cast<const void*>(&snapshot), sizeof snapshot);
  const std::uint64_t rest_bytes = value.extent_bytes - sizeof(heap::BlockHeader);
  answer.chunks =
      Chunks(found.value().start(), {sizeof(heap::BlockHeader), rest_bytes, rest_bytes > 0 ? 1U : 0U, 0});
}

// -- channels

Answer Operations::send_shared(const wire::RequestHeader& header, const GlobalPointer& object, Intake& intake) {
  SharedWait wait = wait_of(header, object);
  auto* words = sync::find<sync::ChannelWords>(heap_.partition(), object);
  if (words == nullptr || intake.block.is_null()) return refused(Code::bad_request, "nothing can be sent there");
  const Result<GlobalPointer> message = publish(intake);
  if (!message.ok()) return refused(Code::bad_request, "the message is no block");
  wait.message = message.value();
  words->remote_wait.fetch_add(1);
  Answer answer;
  if (look_at_channel(wait, wait.wait_ms == 0, answer) || wait.wait_ms == 0) return answer;
  answer.kind = Answer::Kind::waits;
  answer.wait = wait;
  return answer;
}

Answer Operations::receive_shared(const wire::RequestHeader& header, const GlobalPointer& object) {
  SharedWait wait = wait_of(header, object);
  auto* words = sync::find<sync::ChannelWords>(heap_.partition(), object);
  if (words == nullptr) return refused(Code::bad_request, "nothing can be received there");
  words->remote_wait.fetch_add(1);
  Answer answer;
  if (look_at_channel(wait, wait.wait_ms == 0, answer) || wait.wait_ms == 0) return answer;
  answer.kind = Answer::Kind::waits;
  answer.wait = wait;
  return answer;
}

// The server sends and receives on behalf of the other process: it does not die in between without its partition.
bool Operations::look_at_channel(const SharedWait& wait, bool is_over, Answer& answer) {
  heap::Partition& partition = heap_.partition();
  auto* words = sync::find<sync::ChannelWords>(partition, wait.object);
  const bool is_send = wait.verb == SharedVerb::send;
  Status status(Code::not_found, "the channel is gone");
  GlobalPointer received;
  if (words != nullptr) {
    const sync::Who self = sync::Who::make(server(), heap_.process());
    sync::Channel channel(heap_, wait.object, *words);
    if (is_send) {
      status = channel.try_send(self, wait.message);
    } else {
      const Result<GlobalPointer> got = channel.try_receive(self);
      status = got.ok() ? Status() : got.status();
      if (got.ok()) received = got.value();
    }
  }
  const bool has_to_wait = status.code() == Code::full || status.code() == Code::timed_out;
  if (has_to_wait && !is_over) return false;
  if (words != nullptr) words->remote_wait.fetch_sub(1);
  if (is_send && !status.ok()) static_cast<void>(heap_.free_shallow(wait.message));  // what it names is the sender's
  if (has_to_wait) {
    answer = words_of(static_cast<std::uint64_t>(SharedAnswer::waiting));
    return false;
  }
  if (!status.ok()) {
    answer = refused(status.code(), status.detail().c_str());
    return true;
  }
  answer = words_of(static_cast<std::uint64_t>(SharedAnswer::locked));
  if (!is_send) {
    // The receiver frees it when its copy has arrived.
    heap_.set_owner(received, sync::receiver_word(wait.who));
    answer = Answer{};
    serve_value(received, answer);
    const std::lock_guard<std::mutex> lock(buried_mutex_);
    if (std::ranges::find(buried_, wait.who) != buried_.end()) {
      drop(answer);
      answer = refused(Code::closed, "whoever asked has died");
    }
  }
  return true;
}

// -- locks

Answer Operations::lock_shared(const wire::RequestHeader& header, const GlobalPointer& object) {
  SharedWait wait = wait_of(header, object);
  heap::Partition& partition = heap_.partition();
  auto* lock = sync::find<sync::LockWords>(partition, object);
  if (lock == nullptr) return refused(Code::bad_request, "the shared object is no lock");
  if (wait.who.is_nobody() || wait.who.server() == server()) return refused(Code::bad_request, "who locks is not said");
  Answer answer;
  const std::optional<std::uint32_t> kept = lock->line.find(wait.who, wait.token);
  if (!kept && is_again(*lock, wait)) return words_of(static_cast<std::uint64_t>(SharedAnswer::again));
  sync::Queued queued{kept ? sync::Met::waiting : sync::Met::crowded, kept.value_or(0)};
  if (kept && sync::has_entered(*lock, wait.who, *kept)) queued.met = sync::Met::locked;
  if (!kept) {
    if (sync::try_enter(partition, *lock, wait.who)) {
      queued.met = sync::Met::locked;
    } else if (wait.wait_ms > 0) {
      queued = sync::queue_up(*lock, wait.who, wait.token);
    }
  }
  if (queued.met == sync::Met::locked) {
    answer_locked(wait, answer);
    return answer;
  }
  if (queued.met == sync::Met::crowded) return words_of(static_cast<std::uint64_t>(SharedAnswer::waiting));
  wait.place = queued.place;
  answer.kind = Answer::Kind::waits;
  answer.wait = wait;
  return answer;
}

Answer Operations::read_shared(const wire::RequestHeader& header, const GlobalPointer& object) {
  SharedWait wait = wait_of(header, object);
  heap::Partition& partition = heap_.partition();
  auto* lock = sync::find<sync::RwLockWords>(partition, object);
  if (lock == nullptr) return refused(Code::bad_request, "the shared object is no RwLock");
  if (wait.who.is_nobody() || wait.who.server() == server()) return refused(Code::bad_request, "who reads is not said");
  const std::optional<std::uint32_t> kept = lock->line.find(wait.who, wait.token);
  if (!kept && is_again(*lock, wait)) return words_of(static_cast<std::uint64_t>(SharedAnswer::again));
  sync::QueuedToRead queued{kept ? sync::Met::waiting : sync::Met::crowded, kept.value_or(0), 0};
  std::optional<std::uint32_t> slot;
  if (kept) {
    slot = sync::has_entered_to_read(partition, *lock, wait.who, *kept, wait.token);
  } else {
    slot = sync::try_read(partition, *lock, wait.who, wait.token);
    if (!slot && wait.wait_ms > 0) queued = sync::queue_to_read(partition, *lock, wait.who, wait.token);
    if (queued.met == sync::Met::locked) slot = queued.slot;
  }
  Answer answer;
  if (slot) {
    answer_reading(wait, *slot, answer);
    return answer;
  }
  if (queued.met == sync::Met::crowded) return words_of(static_cast<std::uint64_t>(SharedAnswer::waiting));
  wait.place = queued.place;
  answer.kind = Answer::Kind::waits;
  answer.wait = wait;
  return answer;
}

Answer Operations::abandon_shared(const SharedWait& wait) {
  heap::Partition& partition = heap_.partition();
  auto* lock = sync::find<sync::LockWords>(partition, wait.object);
  if (lock == nullptr) return refused(Code::bad_request, "the shared object is of another kind");
  if (const auto place = lock->line.find(wait.who, wait.token)) {
    SharedWait waiting = wait;
    waiting.place = *place;
    lapse(waiting);
  } else if (sync::look(*lock).who() == wait.who && lock->token.load() == wait.token) {
    lock->token.store(0);
    sync::unlock(partition, *lock, true);
  } else if (sync::RwLockWords* both = sync::readable(*lock); both != nullptr) {
    if (const auto slot = both->readers.find(wait.who, wait.token)) sync::end_read(partition, *both, *slot);
  }
  return {};
}

// Of the lock that is held for `wait.who` now: the words, and the value if it is another than the one known there.
void Operations::answer_locked(const SharedWait& wait, Answer& answer) {
  heap::Partition& partition = heap_.partition();
  auto& lock = *sync::find<sync::LockWords>(partition, wait.object);
  if (sync::look(lock).is_poisoned()) {
    if (!wait.recovers) {
      sync::unlock(partition, lock, false);
      answer = words_of(static_cast<std::uint64_t>(SharedAnswer::poisoned));
      return;
    }
    sync::clear_poison(lock);
  }
  lock.token.store(wait.token);
  answer_value(wait, lock, answer);
}

void Operations::answer_reading(const SharedWait& wait, std::uint32_t slot, Answer& answer) {
  heap::Partition& partition = heap_.partition();
  auto& lock = *sync::find<sync::RwLockWords>(partition, wait.object);
  if (sync::look(lock).is_poisoned()) {
    sync::end_read(partition, lock, slot);
    answer = words_of(static_cast<std::uint64_t>(SharedAnswer::poisoned));
    return;
  }
  answer_value(wait, lock, answer);
}

void Operations::answer_value(const SharedWait& wait, const sync::LockWords& lock, Answer& answer) {
  const std::uint64_t version = lock.value.version.load();
  const GlobalPointer value = sync::current_value(heap_.partition(), wait.object, lock);
  answer = words_of(static_cast<std::uint64_t>(SharedAnswer::locked), version, value.extent_bytes);
  if (value.is_null() || version == wait.version) return;
  serve_value(value, answer);
}

Answer Operations::unlock_shared(const wire::RequestHeader& header, const GlobalPointer& object, Intake& intake) {
  heap::Partition& partition = heap_.partition();
  const SharedWait wait = wait_of(header, object);
  auto* mutex = sync::find<sync::LockWords>(partition, object);
  if (mutex == nullptr) return refused(Code::bad_request, "the shared object is no lock");
  if (sync::look(*mutex).who() != wait.who || mutex->token.load() != wait.token)
    return refused(Code::stale, "this thread does not hold the lock any more");
  if (!intake.block.is_null()) {
    const Result<GlobalPointer> value = publish(intake);
    if (!value.ok()) return refused(Code::bad_request, "what was written back is no block");
    std::vector<GlobalPointer> remote;
    sync::put_value(heap_, object, *mutex, value.value(), remote);
    for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
  }
  const std::uint64_t version = mutex->value.version.load();
  mutex->token.store(0);
  sync::unlock(partition, *mutex, (header.region.count & wire::SharedOperand::kPoisons) != 0);
  return words_of(0, version);
}

bool Operations::look_again(const SharedWait& wait, bool is_over, Answer& answer) {
  if (wait.verb == SharedVerb::step) {
    auto* atomic = sync::find<sync::AtomicWords>(heap_.partition(), wait.object);
    if (atomic != nullptr) return look_at_atomic(wait, *atomic, is_over, answer);
    answer = refused(Code::not_found, "the shared object is gone");
    return true;
  }
  if (wait.verb != SharedVerb::lock && wait.verb != SharedVerb::read) return look_at_channel(wait, is_over, answer);
  heap::Partition& partition = heap_.partition();
  auto* lock = sync::find<sync::LockWords>(partition, wait.object);
  if (lock == nullptr) {
    answer = refused(Code::not_found, "the shared object is gone");
    return true;
  }
  if (wait.verb == SharedVerb::read) {
    const auto slot =
        sync::has_entered_to_read(partition, *sync::readable(*lock), wait.who, wait.place, wait.token);
    if (slot) {
      answer_reading(wait, *slot, answer);
      return true;
    }
  } else if (sync::has_entered(*lock, wait.who, wait.place)) {
    answer_locked(wait, answer);
    return true;
  }
  if (!lock->line.is_waiting(wait.place, wait.who)) {  // its process was declared dead
    answer = refused(Code::worker_lost, "who waited has ended");
    return true;
  }
  if (is_over) answer = words_of(static_cast<std::uint64_t>(SharedAnswer::waiting));
  return false;
}

void Operations::lapse(const SharedWait& wait) {
  heap::Partition& partition = heap_.partition();
  if (auto* words = sync::find<sync::ChannelWords>(partition, wait.object); words != nullptr) {
    words->remote_wait.fetch_sub(1);
    if (!wait.message.is_null()) static_cast<void>(heap_.free_shallow(wait.message));
    return;
  }
  if (auto* atomic = sync::find<sync::AtomicWords>(partition, wait.object); atomic != nullptr) {
    atomic->remote_wait.fetch_sub(1);
    return;
  }
  auto* lock = sync::find<sync::LockWords>(partition, wait.object);
  if (lock == nullptr) return;
  if (wait.verb == SharedVerb::read) {
    sync::give_up_reading(partition, *sync::readable(*lock), wait.who, wait.place);
  } else if (sync::give_up(partition, *lock, wait.who, wait.place)) {
    sync::unlock(partition, *lock, false);
  }
}

void Operations::free_unheld() {
  std::vector<GlobalPointer> remote;
  for (const heap::Looked& looked : heap::look_at_marked(heap_.partition())) {
    auto* channel = sync::find<sync::ChannelWords>(heap_.partition(), looked.object);
    if (channel != nullptr) {
      sync::Channel ends(heap_, looked.object, *channel);
      for (const auto role : {sync::ChannelWords::kSenders, sync::ChannelWords::kReceivers})
        if (!looked.has_holds[role]) ends.end(role);
      if (!looked.has_holds[0] && !looked.has_holds[1]) ends.clear(remote);
    }
    if (looked.has_holds[0] || looked.has_holds[1]) continue;
    if (auto* shard = sync::find<sync::ShardWords>(heap_.partition(), looked.object); shard != nullptr)
      sync::Shard(heap_, looked.object, *shard).clear();
    static_cast<void>(heap_.free(looked.object, remote));
  }
  for (const GlobalPointer& pointer : remote) elsewhere_.free(pointer, 0);
}

}  // namespace drust::server
