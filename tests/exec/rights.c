/* Descriptors sent over a socket: within the process they are what they were; in another one a node works, objects answer EIO. */
#include <sys/socket.h>
#include "client.h"

#define N 4

static void send_all(int socket, const int fds[N]) {
  char byte = 'x', control[CMSG_SPACE(N * sizeof(int))] = {0};
  struct iovec v = {&byte, 1};
  struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
  struct cmsghdr *c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(N * sizeof(int));
  memcpy(CMSG_DATA(c), fds, N * sizeof(int));
  CHECK(sendmsg(socket, &m, 0) == 1);
}

static void receive_all(int socket, int fds[N], bool many) {
  char byte, control[CMSG_SPACE(N * sizeof(int))];
  struct iovec v = {&byte, 1};
  struct mmsghdr mm = {.msg_hdr = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)}};
  if (many)
    CHECK(recvmmsg(socket, &mm, 1, 0, NULL) == 1);
  else
    CHECK(recvmsg(socket, &mm.msg_hdr, MSG_CMSG_CLOEXEC) == 1);
  struct cmsghdr *c = CMSG_FIRSTHDR(&mm.msg_hdr);
  CHECK(c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(N * sizeof(int)));
  memcpy(fds, CMSG_DATA(c), N * sizeof(int));
}

static void within(const int sockets[2], bool many) {
  struct machine m = MACHINE(port_code);
  int null = open("/dev/null", O_RDWR), got[N], sent[N] = {m.kvm, m.vm, m.vcpu, null};
  send_all(sockets[0], sent);
  receive_all(sockets[1], got, many);
  for (int i = 0; i < N; i++) close(sent[i]);
  CHECK(IS_KVM(got[0]));
  CHECK(ioctl(got[1], KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
  struct kvm_run *run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, got[2], 0);
  CHECK(run != MAP_FAILED);
  CHECK(ioctl(got[2], KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO);
  CHECK_ERRNO(ioctl(got[3], KVM_GET_API_VERSION, 0), ENOTTY);
  for (int i = 0; i < N; i++) CHECK(close(got[i]) == 0);
}

static void receiver(int socket, bool has_own) {
  int fds[N];
  struct machine own;
  if (has_own) own = (struct machine)MACHINE(halt_code);
  receive_all(socket, fds, false);
  CHECK(IS_KVM(fds[0]));
  CHECK(ioctl(fds[0], KVM_CREATE_VM, 0) >= 0);
  CHECK_ERRNO(ioctl(fds[1], KVM_CREATE_VCPU, 1), EIO);
  CHECK_ERRNO(ioctl(fds[2], KVM_RUN, 0), EIO);
  struct kvm_run *run = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fds[2], 0);
  CHECK(run != MAP_FAILED && run->exit_reason == KVM_EXIT_HLT); /* the page can be read all the same, as KVM's can */
  if (has_own) CHECK(runs_to_halt(&own));
  _exit(0);
}

/* Forked before the sender opens anything: nothing is inherited. */
static void between(bool has_own) {
  int sockets[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  pid_t pid = fork();
  if (pid == 0) receiver(sockets[1], has_own);
  struct machine m = MACHINE(halt_code);
  CHECK(runs_to_halt(&m));
  send_all(sockets[0], (int[N]){m.kvm, m.vm, m.vcpu, 2});
  CHECK(wait_for(pid) == 0);
  CHECK(runs_to_halt(&m));
  close(m.vcpu), close(m.vm), close(m.kvm), close(sockets[0]), close(sockets[1]);
}

int main(void) {
  int sockets[2];
  between(false);
  between(true);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  within(sockets, false);
  within(sockets, true);
  return 0;
}
