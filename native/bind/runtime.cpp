// _core.Runtime: attach to a partition; open, fetch, move, free blocks; queue tasks and wait for them.
//
// Whatever may wait, or touches more than a page of bytes, runs without the GIL. Waits are cut at signals, so that
// Ctrl-C reaches a script that joins. Costs are in messages on the wire; "here" is this server's partition.
#include "bind/runtime.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <vector>

#include "bind/pin.hpp"
#include "bind/pointer.hpp"
#include "server/deliver.hpp"
#include "server/lent.hpp"
#include "sync/channel.hpp"
#include "sync/deadlock.hpp"
#include "sync/who.hpp"

namespace drust::bind {
namespace {

constexpr std::array<const char*, heap::kCounters> kCounterNames = {
    "read_requests",   "write_requests",   "free_messages",   "frees_sent",      "submit_messages",
    "complete_messages", "control_messages", "bytes_received", "bytes_sent",     "allocations",
    "bytes_allocated", "frees",            "blocks_copied",   "bytes_copied",    "copy_hits",
    "copy_misses",     "copies_evicted",   "encodes",         "bytes_encoded",   "decodes",
    "moves_in",        "borrows",          "mutable_borrows", "tasks_run",       "messages_served",
    "frames_rejected", "replica_messages", "blocks_replicated", "bytes_replicated",
    "results_unreplicated", "shared_messages"};
static_assert(kCounterNames.back() != nullptr);

std::vector<std::byte> bytes_of(nb::bytes value) {
  const auto* first = reinterpret_cast<const std::byte*>(value.c_str());
  return {first, first + value.size()};
}

// A contiguous Python buffer for the length of a call.
class Contiguous {
 public:
  Contiguous(nb::handle object, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~Contiguous() { PyBuffer_Release(&view_); }
  Contiguous(const Contiguous&) = delete;
  Contiguous& operator=(const Contiguous&) = delete;
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

Result<Runtime*> start(int memfd, heap::ProcessKind kind, server::Token token, std::uint32_t pid) {
  auto attached = heap::Partition::attach(memfd);
  if (!attached.ok()) return attached.status();
  auto runtime = std::make_unique<Runtime>();
  runtime->partition = std::move(attached.value());
  auto process = runtime->partition->claim_process(kind, pid);
  if (!process.ok()) return process.status();
  runtime->process = process.value();
  runtime->heap = std::make_unique<heap::Heap>(*runtime->partition, runtime->process);
  runtime->copies = std::make_unique<cache::Copies>(*runtime->heap);
  runtime->queue = std::make_unique<tasks::Queue>(*runtime->heap);
  runtime->peers = std::make_unique<server::Peers>(*runtime->heap, server::PeersOptions{.token = std::move(token)});
  runtime->homeward = std::make_unique<server::Homeward>(*runtime->heap, *runtime->queue, *runtime->peers);
  runtime->heap->set_pressure_hook(
      [copies = runtime->copies.get()](std::uint64_t bytes) { return copies->evict(bytes); });
  return runtime.release();
}

Runtime* attach(int memfd, int kind, nb::bytes token, std::uint32_t pid) {
  if (current_runtime() != nullptr) raise(Status(Code::bad_request, "this process is attached already"));
  auto secret = bytes_of(token);
  Result<Runtime*> runtime = [&] {
    nb::gil_scoped_release unlocked;
    return start(memfd, static_cast<heap::ProcessKind>(kind), std::move(secret), pid);
  }();
  Runtime* attached = unwrap(std::move(runtime));
  set_current_runtime(attached);
  return attached;
}

// From here on handles are inert. The mappings stay: views of arrays may be alive until the process ends.
void close(Runtime& runtime) {
  if (current_runtime() != &runtime) return;
  set_current_runtime(nullptr);
  nb::gil_scoped_release unlocked;
  bool is_done = runtime.homeward->close();
  is_done = runtime.peers->flush_frees() && is_done;
  runtime.peers->close();
  // What may not have arrived stands in the outbox, or in the entries of its tasks: a reaper looks there, once the process has ended.
  if (is_done) runtime.partition->release_process(runtime.process);
}

nb::object open(Runtime& runtime, nb::tuple tuple, bool writable, int on_release) {
  const GlobalPointer pointer = to_pointer(tuple);
  static_cast<void>(unwrap(runtime.partition->find(pointer.address, pointer.colour)));
  const auto action = static_cast<OnRelease>(on_release);
  if (action == OnRelease::free_tree || action == OnRelease::free_shallow) runtime.heap->make_own(pointer);
  return nb::steal(make_pin(pointer, pointer, writable, static_cast<OnRelease>(on_release), 0));
}

// The bytes of a remote version here, shared with every process of the host: 0 messages on a hit, else 1 read.
nb::object fetch(Runtime& runtime, nb::tuple tuple) {
  const GlobalPointer remote = to_pointer(tuple);
  std::uint32_t entry = 0;
  OnRelease on_release = OnRelease::release_copy;
  Result<GlobalPointer> local = [&]() -> Result<GlobalPointer> {
    nb::gil_scoped_release unlocked;
    auto acquired = runtime.copies->acquire(remote, kPeerTimeoutMs);
    if (!acquired.ok() && acquired.status().code() == Code::full) {
      on_release = OnRelease::free_shallow;
      return runtime.peers->read_block(remote);
    }
    if (!acquired.ok()) return acquired.status();
    entry = acquired.value().entry;
    if (!acquired.value().is_leader) return acquired.value().local;
    auto fetched = runtime.peers->read_block(remote);
    if (!fetched.ok()) {
      runtime.copies->abandon(entry);
      return fetched;
    }
    runtime.copies->publish(entry, fetched.value());
    return fetched;
  }();
  const GlobalPointer copy = unwrap(std::move(local));
  return nb::steal(make_pin(on_release == OnRelease::free_shallow ? copy : remote, copy, false, on_release, entry));
}

// Moves a remote block here under a fresh colour: 1 read. The old block stays the pre-image until the caller frees it;
// `lent`: its owner is somebody else, who will.
nb::object take(Runtime& runtime, nb::tuple tuple, bool lent) {
  const GlobalPointer remote = to_pointer(tuple);
  Result<GlobalPointer> local = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.peers->read_block(remote, lent);
  }();
  const GlobalPointer moved = unwrap(std::move(local));
  runtime.count(heap::Counter::moves_in);
  return nb::steal(make_pin(moved, moved, false, OnRelease::free_tree, 0));
}

void free_block(Runtime&, nb::tuple tuple, bool shallow) {
  const GlobalPointer pointer = to_pointer(tuple);
  nb::gil_scoped_release unlocked;
  release_block(pointer, shallow ? OnRelease::free_shallow : OnRelease::free_tree, 0);
}

nb::tuple duplicate(Runtime& runtime, nb::tuple tuple) {
  const GlobalPointer pointer = to_pointer(tuple);
  Result<GlobalPointer> copy = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.heap->duplicate(pointer);
  }();
  return to_tuple(unwrap(std::move(copy)));
}

wire::Region to_region(nb::tuple tuple) {
  return {nb::cast<std::uint64_t>(tuple[0]), nb::cast<std::uint64_t>(tuple[1]), nb::cast<std::uint64_t>(tuple[2]),
          nb::cast<std::uint64_t>(tuple[3])};
}

void read_region(Runtime& runtime, nb::tuple tuple, nb::tuple region, nb::object destination) {
  const GlobalPointer pointer = to_pointer(tuple);
  const wire::Region chunks = to_region(region);
  Contiguous buffer(destination, true);
  Status status = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.peers->read_region(pointer, chunks, buffer.bytes());
  }();
  unwrap(status);
}

void write_region(Runtime& runtime, nb::tuple tuple, nb::tuple region, nb::object source) {
  const GlobalPointer pointer = to_pointer(tuple);
  const wire::Region chunks = to_region(region);
  Contiguous buffer(source, false);
  Status status = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.peers->write_region(pointer, chunks, buffer.bytes());
  }();
  unwrap(status);
}

nb::tuple put(Runtime& runtime, ServerId server, nb::tuple tuple) {
  const GlobalPointer pointer = to_pointer(tuple);
  Result<GlobalPointer> there = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.peers->put_block(server, pointer);
  }();
  return to_tuple(unwrap(std::move(there)));
}

// A record in this partition. `lends`: child pointers of what the task is lent; `under`: TaskEntry.id of the task
// that lends on what it was lent, or 0.
nb::tuple make_record(Runtime& runtime, ServerId server, nb::list lends, std::uint64_t under) {
  std::vector<heap::ChildPointer> children;
  for (nb::handle lend : lends) children.push_back(to_child(lend));
  return to_tuple(unwrap(tasks::Queue::make_record(*runtime.heap, server, children, under)));
}

// Queues a task block, whose completion goes to `record`: 0 messages here, 1 round trip elsewhere. The block is the
// queue's from now on. Until it has arrived, its record names it: if this process dies, its reaper finds out. Here it
// is kept for so long: left to whoever waits for it. Its ticket, for offer().
std::uint64_t submit(Runtime& runtime, ServerId server, nb::tuple task_tuple, nb::tuple record_tuple,
                     std::uint32_t retries, bool is_bound, std::uint32_t kept_us) {
  const GlobalPointer task = to_pointer(task_tuple);
  const GlobalPointer record = to_pointer(record_tuple);
  if (retries > kRetriesMax) throw nb::value_error("retry= is at most 1000");
  return unwrap([&]() -> Result<std::uint64_t> {
    nb::gil_scoped_release unlocked;
    tasks::Record* waiting = tasks::Queue::find_record(*runtime.partition, record);
    if (waiting != nullptr) waiting->call.store(task.address.raw());
    const bool is_here = server == runtime.partition->server();
    const auto kind = is_here ? heap::OwnerKind::queue : heap::OwnerKind::in_transit;
    const std::uint64_t carried = heap::owner_word(kind, is_here ? heap::ProcessId{} : runtime.process);
    runtime.heap->set_owner(task, carried);
    Result<std::uint64_t> sent(0);
    if (is_here) {
      sent = runtime.queue->push(task, record, {.retries = retries, .is_bound = is_bound, .kept_us = kept_us});
    } else if (Status told = runtime.peers->submit(server, task, record, retries); !told.ok()) {
      sent = told;
    }
    if (!sent.ok()) {
      runtime.heap->set_owner(task, heap::owner_word(heap::OwnerKind::process, runtime.process));
    } else {
      if (!is_here) runtime.partition->note_sent(server, 1);
      if (!is_here) release_block(task, OnRelease::free_shallow, 0);  // first: while it is named, a reaper frees it
      if (waiting != nullptr) waiting->call.store(tasks::Record::kCallArrived);
    }
    return sent;
  }());
}

// Where the task of a record is, or was last: whoever queued it, or took it over, says so there. None: the record is gone.
nb::object record_server(Runtime& runtime, nb::tuple record_tuple) {
  const tasks::Record* record = tasks::Queue::find_record(*runtime.partition, to_pointer(record_tuple));
  return record == nullptr ? nb::none() : nb::cast(record->server.load());
}

nb::object take_task(Runtime& runtime, std::uint32_t timeout_ms) {
  Result<tasks::Entry> entry = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.queue->take(timeout_ms);
  }();
  if (!entry.ok()) {
    if (entry.status().code() == Code::interrupted && PyErr_CheckSignals() != 0) throw nb::python_error();
    if (entry.status().code() == Code::timed_out || entry.status().code() == Code::interrupted) return nb::none();
    raise(entry.status());
  }
  return nb::cast(TaskEntry{entry.value()});
}

// The end of a task, in two steps. First it is decided that it has returned: its completion is the entry's, its call
// block this process's. If it was declared lost before, this process was fenced.
void returned(Runtime& runtime, const TaskEntry& entry, nb::tuple completion_tuple) {
  const GlobalPointer completion = to_pointer(completion_tuple);
  if (!runtime.queue->returned(entry.entry, completion)) {
    raise(Status(Code::worker_lost, "this worker was declared lost while it ran"));
  }
  server::release_versions(*runtime.heap, completion, runtime.process);
  runtime.heap->set_owner(entry.entry.task, heap::owner_word(heap::OwnerKind::process, runtime.process));
}

// Once it has returned: a version that this process has kept owns all that it names. Others: nothing happens.
void keep_version(Runtime& runtime, nb::tuple pointer_tuple) {
  const std::uint64_t version = heap::owner_word(heap::OwnerKind::borrower, runtime.process);
  const std::uint64_t own = heap::owner_word(heap::OwnerKind::process, runtime.process);
  static_cast<void>(runtime.heap->change_owner(to_pointer(pointer_tuple), version, own));
}

// Then the completion goes home: a write in this partition, or 1 round trip, which other tasks share and nobody waits
// for where more of them are to be run. False: its receiver does not answer;
// the task's entry keeps it, to be sent again.
bool give_home(Runtime& runtime, const TaskEntry& entry, nb::tuple completion_tuple) {
  const GlobalPointer completion = to_pointer(completion_tuple);
  Status status = [&]() -> Status {
    nb::gil_scoped_release unlocked;
    if (runtime.homeward->take(entry.entry, completion)) return {};
    const Status sent =
        server::deliver(*runtime.heap, *runtime.peers, entry.entry.record, tasks::RecordState::done, completion,
                        runtime.queue->is_forbidden(entry.entry));
    if (sent.code() != Code::timed_out) runtime.queue->finish(entry.entry);
    return sent.code() == Code::server_lost ? Status() : sent;  // nobody is left to hear of it
  }();
  if (status.code() == Code::timed_out) return false;
  unwrap(status);
  return true;
}

// A worker has taken a moved box out of its task's block: if it dies, the block's end must not free that box, which
// may be anybody's by then; the box's own owner word says whose.
void take_child(Runtime& runtime, nb::handle task_tuple, std::uint32_t index) {
  const GlobalPointer task = to_pointer(task_tuple);
  const heap::Block block = unwrap(runtime.partition->find(task.address, task.colour));
  if (index >= block.header().child_count) throw nb::index_error("this block has no such child");
  block.children()[index].flags |= heap::ChildPointer::kShared;
}

// (state, completion pointer) once the record left pending; None when time ran out.
nb::object wait(Runtime& runtime, nb::tuple record_tuple, std::uint32_t timeout_ms) {
  const GlobalPointer record = to_pointer(record_tuple);
  Result<tasks::Record*> waited = [&] {
    if (timeout_ms == 0) return tasks::Queue::wait(*runtime.partition, record, 0);
    nb::gil_scoped_release unlocked;
    return tasks::Queue::wait(*runtime.partition, record, timeout_ms);
  }();
  if (!waited.ok()) {
    if (waited.status().code() == Code::interrupted && PyErr_CheckSignals() != 0) throw nb::python_error();
    if (waited.status().code() == Code::timed_out || waited.status().code() == Code::interrupted) return nb::none();
    raise(waited.status());
  }
  const tasks::Record& done = *waited.value();
  return nb::make_tuple(static_cast<int>(done.state.load()), to_tuple(done.completion()));
}

// (pointer now, or None if it is gone; whether it, or anything below it, was written in place): server/lent.hpp.
nb::tuple look_at_lent(Runtime& runtime, nb::tuple tuple, ServerId gone) {
  const GlobalPointer pointer = to_pointer(tuple);
  server::Lent found;
  {
    nb::gil_scoped_release unlocked;
    found = server::look_at_lent(*runtime.heap, *runtime.peers, pointer, gone);
  }
  nb::object now = nb::none();
  if (!found.now.is_null()) now = to_tuple(found.now);
  return nb::make_tuple(now, found.is_written);
}

nb::bytes control(Runtime& runtime, ServerId server, nb::bytes body) {
  const auto request = bytes_of(body);
  Result<std::vector<std::byte>> reply = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.peers->control(server, request);
  }();
  const auto answer = unwrap(std::move(reply));
  return nb::bytes(answer.data(), answer.size());
}

void ping(Runtime& runtime, ServerId server) {
  Status status = [&] {
    nb::gil_scoped_release unlocked;
    return runtime.peers->ping(server);
  }();
  unwrap(status);
}

}  // namespace

void register_tasks(nb::module_& module, nb::class_<Runtime>& runtime);  // tasks.cpp

nb::dict counters_dict(const heap::Partition& partition) {
  nb::dict result;
  const auto values = partition.counters();
  for (std::size_t i = 0; i < values.size(); ++i) result[kCounterNames[i]] = values[i];
  return result;
}

nb::dict usage_dict(const heap::Partition& partition) {
  const auto usage = partition.usage();
  nb::dict result;
  result["quota_bytes"] = usage.quota_bytes;
  result["claimed_bytes"] = usage.claimed_bytes;
  result["warm_bytes"] = usage.warm_bytes;
  return result;
}

nb::list largest_list(const heap::Partition& partition, std::size_t most) {
  nb::list result;
  for (const auto& row : partition.largest_blocks(most)) {
    const auto owner = heap::owner_process(row.owner);
    nb::dict item;
    item["pointer"] = to_tuple(row.pointer);
    item["codec"] = row.codec;
    item["owner_kind"] = static_cast<int>(heap::owner_kind(row.owner));
    item["owner_slot"] = owner.slot;
    result.append(item);
  }
  return result;
}

nb::list processes_list(const heap::Partition& partition) {
  nb::list result;
  for (const auto& process : partition.processes()) {
    nb::dict counters;
    for (std::size_t i = 0; i < kCounterNames.size(); ++i) counters[kCounterNames[i]] = process.counters[i];
    nb::dict item;
    item["slot"] = process.id.slot;
    item["generation"] = process.id.generation;
    item["kind"] = static_cast<int>(process.kind);
    item["pid"] = process.pid;
    item["start_time"] = process.start_time;
    item["counters"] = counters;
    result.append(item);
  }
  return result;
}

nb::object find_wait(const heap::Partition& partition, std::uint64_t who, std::uint64_t token) {
  std::optional<sync::Wait> wait;
  {
    const nb::gil_scoped_release unlocked;
    wait = sync::find_wait(partition, sync::Who(who), token);
  }
  if (!wait) return nb::none();
  nb::list by;
  for (const sync::Readers::Reading& each : wait->by) by.append(nb::make_tuple(each.who.raw(), each.token));
  return nb::make_tuple(wait->lock.address.raw(), nb::bytes(wait->note.data(), wait->note.size()), by);
}

void register_runtime(nb::module_& module) {
  nb::class_<TaskEntry>(module, "TaskEntry", "A task this worker is running.")
      .def_prop_ro("task", [](const TaskEntry& e) { return to_tuple(e.entry.task); })
      .def_prop_ro("record", [](const TaskEntry& e) { return to_tuple(e.entry.record); })
      .def_prop_ro("id", [](const TaskEntry& e) { return e.entry.id(); }, "Names this run of the task in this partition.")
      .def_prop_ro("ticket", [](const TaskEntry& e) { return e.entry.ticket; });

  nb::class_<Runtime> runtime(module, "Runtime", "This process's place in a server's partition.");
  runtime
      .def_static("attach", &attach, nb::arg("memfd"), nb::arg("kind"), nb::arg("token"), nb::arg("pid"),
                  nb::rv_policy::reference)
      .def_static("current", [] { return current_runtime(); }, nb::rv_policy::reference)
      .def("close", &close)
      .def_prop_ro("server", [](const Runtime& r) { return r.partition->server(); })
      .def_prop_ro("slot", [](const Runtime& r) { return r.process.slot; })
      .def_prop_ro("generation", [](const Runtime& r) { return r.process.generation; })
      .def_prop_ro("closed", [](const Runtime& r) { return current_runtime() != &r || r.partition->is_closed(); })
      .def("open", &open, nb::arg("pointer"), nb::arg("writable"), nb::arg("on_release"))
      .def("fetch", &fetch, nb::arg("pointer"))
      .def("take", &take, nb::arg("pointer"), nb::arg("lent") = false)
      .def("free", &free_block, nb::arg("pointer"), nb::arg("shallow") = false)
      .def("recolour",
           [](Runtime& r, nb::tuple pointer) { return to_tuple(unwrap(r.heap->recolour(to_pointer(pointer)))); })
      .def("duplicate", &duplicate, nb::arg("pointer"))
      .def("set_owner", [](Runtime& r, nb::tuple pointer, int kind) {
        return r.heap->set_owner(to_pointer(pointer), heap::owner_word(static_cast<heap::OwnerKind>(kind), r.process));
      })
      .def("is_live", [](Runtime& r, nb::tuple pointer) {
        const GlobalPointer p = to_pointer(pointer);
        return r.partition->find(p.address, p.colour).ok();
      })
      .def("look_at_lent", &look_at_lent, nb::arg("pointer"), nb::arg("gone") = kNoServer)
      .def("read_region", &read_region, nb::arg("pointer"), nb::arg("region"), nb::arg("destination"))
      .def("write_region", &write_region, nb::arg("pointer"), nb::arg("region"), nb::arg("source"))
      .def("put", &put, nb::arg("server"), nb::arg("pointer"))
      .def("make_record", &make_record, nb::arg("server"), nb::arg("lends"), nb::arg("under") = 0)
      .def("drop_record",
           [](Runtime& r, nb::tuple record) {
             std::vector<GlobalPointer> remote;
             std::vector<GlobalPointer> made;
             static_cast<void>(server::drop_joiner(*r.heap, to_pointer(record), remote, made));
             for (const GlobalPointer& block : remote) r.peers->free_later(block, false);
             for (const GlobalPointer& block : made) r.peers->free_made_later(block);
           })
      .def("submit", &submit, nb::arg("server"), nb::arg("task"), nb::arg("record"), nb::arg("retries") = 0,
           nb::arg("bound") = false, nb::arg("kept_us") = 0)
      .def("record_server", &record_server, nb::arg("record"))
      .def("take_child", &take_child, nb::arg("task"), nb::arg("index"))
      .def("take_task", &take_task, nb::arg("timeout_ms"))
      .def("returned", &returned, nb::arg("entry"), nb::arg("completion"))
      .def("give_home", &give_home, nb::arg("entry"), nb::arg("completion"))
      .def("forbid_rollback",
           [](Runtime& r, const TaskEntry& entry) { r.queue->forbid_rollback(entry.entry); }, nb::arg("entry"))
      .def("keep_version", &keep_version, nb::arg("pointer"))
      .def("wait", &wait, nb::arg("record"), nb::arg("timeout_ms"))
      .def("control", &control, nb::arg("server"), nb::arg("body"))
      .def("ping", &ping, nb::arg("server"))
      .def("flush", [](Runtime& r) { nb::gil_scoped_release unlocked; r.peers->flush_frees(); })
      .def("evict", [](Runtime& r, std::uint64_t bytes) { return r.copies->evict(bytes); }, nb::arg("bytes"))
      .def("endpoint",
           [](const Runtime& r, ServerId server) {
             const auto endpoint = r.partition->endpoint(server);
             return nb::make_tuple(endpoint.epoch, endpoint.host, endpoint.port);
           })
      .def("queued", [](const Runtime& r) { return nb::make_tuple(r.queue->ready(), r.queue->running()); })
      .def("count",
           [](const Runtime& r, int counter, std::uint64_t amount) {
             r.count(static_cast<heap::Counter>(counter), amount);
           },
           nb::arg("counter"), nb::arg("amount") = 1)
      .def("counters", [](const Runtime& r) { return counters_dict(*r.partition); })
      .def("usage", [](const Runtime& r) { return usage_dict(*r.partition); })
      .def("largest_blocks", [](const Runtime& r, std::size_t most) { return largest_list(*r.partition, most); })
      .def("processes", [](const Runtime& r) { return processes_list(*r.partition); })
      .def_prop_ro("who", [](const Runtime& r) { return sync::Who::make(r.partition->server(), r.heap->process()).raw(); },
                   "This process, as shared objects name it.")
      .def("find_wait", [](const Runtime& r, std::uint64_t who, std::uint64_t token) { return find_wait(*r.partition, who, token); },
           nb::arg("who"), nb::arg("token"),
           "The lock of this partition that a thread waits for: (address, its note, [(who, token) that keep it waiting]).")
      .def("live_blocks", [](const Runtime& r) { return r.partition->live_blocks(); })
      .def("copies", [](const Runtime& r) { return nb::make_tuple(r.copies->entries(), r.copies->pinned()); });

  register_tasks(module, runtime);

  nb::list names;
  for (const char* name : kCounterNames) names.append(name);
  module.attr("COUNTER_NAMES") = nb::tuple(names);
  module.attr("TASK_CODEC") = tasks::kTaskCodec;
  module.attr("RECORD_CODEC") = tasks::kRecordCodec;
  module.attr("COMPLETION_CODEC") = tasks::kCompletionCodec;
  module.attr("LOSS_CODEC") = tasks::kLossCodec;
  module.attr("SHARED_CODEC") = heap::kSharedCodec;
  module.attr("HOLD_CODEC") = heap::kHoldCodec;
  module.attr("SEGMENT_CODEC") = sync::kSegmentCodec;
  module.attr("NOTE_CODEC") = sync::kNoteCodec;
}

}  // namespace drust::bind
