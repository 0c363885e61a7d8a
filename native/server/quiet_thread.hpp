// A thread that takes no signals: they belong to the thread that runs the interpreter.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <functional>
#include <thread>

namespace drust::server {

inline std::thread start_quiet_thread(const char* name, std::function<void()> body) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // inherited by the new thread
  std::thread thread(std::move(body));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_setname_np(thread.native_handle(), name);
  return thread;
}

}  // namespace drust::server
