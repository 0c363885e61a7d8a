// _core.exit_on_eof: a worker ends with its server, whatever its Python threads are doing.
//
// A native thread reads a pipe whose other end only the server holds; the kernel closes that end when the server dies, in
// any way. The thread needs no GIL, so a worker deep in a native kernel, or holding the GIL for minutes, ends as fast as
// an idle one. Rejected: PR_SET_PDEATHSIG (fires when the *thread* that forked ends), a Python thread (waits for the
// GIL), polling the parent's pid (costs wake-ups, and pids are reused).
#include <nanobind/nanobind.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace nb = nanobind;

namespace drust::bind {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;

void* end_at_eof(void* argument) {
  const int descriptor = static_cast<int>(reinterpret_cast<std::intptr_t>(argument));
  char ignored[64];
  for (;;) {
    const ssize_t got = ::read(descriptor, ignored, sizeof ignored);
    if (got == 0 || (got < 0 && errno != EINTR)) break;
  }
  // With a process group of its own, whatever the tasks have started ends too.
  if (::getpgrp() == ::getpid()) static_cast<void>(::kill(0, SIGKILL));
  ::_exit(1);
}

// One thread a call, until the process ends; it handles no signals, so Python's handlers run where they always do.
void exit_on_eof(int descriptor) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const int failed = pthread_create(&thread, &attributes, &end_at_eof,
                                    reinterpret_cast<void*>(static_cast<std::intptr_t>(descriptor)));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (failed != 0) {
    errno = failed;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
  }
}

}  // namespace

void register_watch(nb::module_& module) {
  module.def("exit_on_eof", &exit_on_eof, nb::arg("descriptor"),
             "Ends this process, and its process group if it leads one, once reading `descriptor` gives end of file.");
}

}  // namespace drust::bind
