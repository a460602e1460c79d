// Runs a grid on the CPU: every CUDA thread is a fiber that runs until it waits, block after block.
//
// Which thread goes on is decided by ranks: of the threads that can, the one with the lowest rank. Forward ranks are the
// threads' numbers, backward ones the reverse, shuffled ones a permutation that is drawn anew at each barrier. Blocks of
// a cooperative launch are all alive at once; they share one piece of shared memory, whose content is swapped.
#include "cuda_host.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define TILESMITH_ASAN 1
#else
#define TILESMITH_ASAN 0
#endif

#if !defined(__x86_64__) && !defined(TILESMITH_UCONTEXT)
#define TILESMITH_UCONTEXT 1
#endif
#ifdef TILESMITH_UCONTEXT
#include <ucontext.h>
#endif

namespace tilesmith_host {

constexpr int MAX_THREADS = 1024, WORDS = MAX_THREADS / 64, LANES = 32;
constexpr int MAX_DYNAMIC = 227 * 1024, CANARY = 256;
constexpr size_t STACK = TILESMITH_ASAN ? 512 * 1024 : 256 * 1024, PAGE = 4096, GUARDED_STACKS = 4096;
constexpr int MAX_SPINS = 20000;  // rounds in which every thread that can go on only waits for memory
constexpr unsigned char POISON = 0xff;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
alignas(1024) unsigned char dynamic_shared[MAX_DYNAMIC + CANARY];
unsigned spins;

enum Order { FORWARD, BACKWARD, SHUFFLED };
enum State { READY, AT_BLOCK_BARRIER, AT_GRID_BARRIER, IN_WARP, EXITED };

// A stack and what runs on it: kernel threads, one after another, each until it returns.
struct Worker {
#ifdef TILESMITH_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
    char* stack = nullptr;
    size_t bytes = 0;
};

struct Thread {
    uint3 index;
    int rank;
    Worker* worker;  // null before the thread starts and after it returns
    State state;
    const char* waits_in;
    const char* file;
    int line;
    unsigned mask;
    unsigned long long value, result;
    int source;
};

// Lanes that wait for each other: the same operation with the same mask.
struct Group {
    WarpOp op;
    unsigned mask, arrived;
};
struct Warp {
    unsigned exists, exited;
    int groups;
    Group group[LANES];
};

struct Block {
    uint3 index;
    int alive, at_barrier, at_grid;
    BarrierKind kind;
    Thread* first;  // that came to the barrier
    int ones, result;
    unsigned long long ready[WORDS], yielded[WORDS];  // a bit a rank
    short thread_at[MAX_THREADS];                     // by rank
    Thread thread[MAX_THREADS];
    Warp warp[MAX_THREADS / LANES];
    std::vector<unsigned char> shared;  // what is in shared memory while another block runs
};

struct Launch {
    unsigned grid[3], block[3];
    void** args;
    int shared, order, cooperative;
};

namespace {

const Entry* entry;
const Launch* launch;
int threads;
Block* block;
Thread* current;
Worker main_worker;
std::vector<Worker*> workers, idle;
bool progress;  // a thread returned or a barrier opened since this was last cleared
char* message;
size_t message_bytes;
bool failed;
unsigned long long random_state;

unsigned random_below(unsigned n) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return unsigned((random_state >> 32) * n >> 32);
}

// ---- fibers

[[noreturn]] void work();

#ifndef TILESMITH_UCONTEXT
// Keeps the registers that a called function must keep, and the stack pointer. No signal mask: that is a system call.
extern "C" void tilesmith_switch(void** from, void* to);
asm(R"(
    .text
    .hidden tilesmith_switch
    .globl tilesmith_switch
    .type tilesmith_switch, @function
tilesmith_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size tilesmith_switch, . - tilesmith_switch
)");
#endif

void prepare(Worker* worker) {
#ifdef TILESMITH_UCONTEXT
    getcontext(&worker->context);
    worker->context.uc_stack.ss_sp = worker->stack;
    worker->context.uc_stack.ss_size = worker->bytes;
    worker->context.uc_link = nullptr;
    makecontext(&worker->context, reinterpret_cast<void (*)()>(work), 0);
#else
    void** top = reinterpret_cast<void**>(worker->stack + worker->bytes);
    top[-1] = nullptr;  // where `work` would return to
    top[-2] = reinterpret_cast<void*>(&work);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    worker->stack_pointer = top - 8;
#endif
}

void switch_workers(Worker* from, Worker* to) {
    spins = 0;
#if TILESMITH_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, to->stack, to->bytes);
#endif
#ifdef TILESMITH_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    tilesmith_switch(&from->stack_pointer, to->stack_pointer);
#endif
#if TILESMITH_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// A worker that has nothing to do. The lowest page of a stack is not mapped: running over ends in a fault.
Worker* take_idle() {
    if (idle.empty()) {
        Worker* worker = new Worker;
        void* memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            fprintf(stderr, "tilesmith: no memory for the stack of fiber %zu\n", workers.size());
            abort();
        }
        const size_t guard = workers.size() < GUARDED_STACKS ? PAGE : 0;
        if (guard) mprotect(memory, guard, PROT_NONE);
        worker->stack = static_cast<char*>(memory) + guard;
        worker->bytes = STACK - guard;
        prepare(worker);
        workers.push_back(worker);
        idle.push_back(worker);
    }
    Worker* worker = idle.back();
    idle.pop_back();
    return worker;
}

// After an error the stacks hold threads that will never go on.
void forget_stacks() {
    idle = workers;
    for (Worker* worker : workers) {
#if TILESMITH_ASAN
        __asan_unpoison_memory_region(worker->stack, worker->bytes);
#endif
        prepare(worker);
    }
}

// ---- who goes on

void set_ready(Thread& thread) {
    thread.state = READY;
    block->ready[thread.rank / 64] |= 1ull << thread.rank % 64;
}

Thread* pick() {
    for (int word = 0; word * 64 < threads; ++word) {
        if (const unsigned long long bits = block->ready[word]) {
            block->ready[word] = bits & (bits - 1);
            return &block->thread[block->thread_at[word * 64 + __builtin_ctzll(bits)]];
        }
    }
    return nullptr;
}

void enter(Thread* thread) {
    current = thread;
    threadIdx = thread->index;
}

// Continues with a thread, or with the launch's own context if there is none.
void go(Worker* from, Thread* next) {
    Worker* to = &main_worker;
    if (next) {
        if (!next->worker) next->worker = take_idle();
        to = next->worker;
        enter(next);
    }
    switch_workers(from, to);
}

// Waits until somebody makes the current thread ready.
void suspend() {
    Thread* self = current;
    Thread* next = pick();
    if (next == self) return;
    go(self->worker, next);
}

void swap_ranks(Block& b, Thread& one, Thread& other) {
    const int rank = one.rank;
    one.rank = other.rank, other.rank = rank;
    b.thread_at[one.rank] = short(&one - b.thread), b.thread_at[other.rank] = short(&other - b.thread);
}

void shuffle_ranks(Block& b) {
    for (int i = threads - 1; i > 0; --i) swap_ranks(b, b.thread[i], b.thread[random_below(i + 1)]);
}

// ---- errors

void append(const char* format, ...) {
    const size_t used = strlen(message);
    if (used + 1 >= message_bytes) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + used, message_bytes - used, format, arguments);
    va_end(arguments);
}

void append_thread(const Thread& t) { append("thread (%u,%u,%u)", t.index.x, t.index.y, t.index.z); }
void append_block(const Block& b) { append("block (%u,%u,%u)", b.index.x, b.index.y, b.index.z); }

const char* file_name(const char* path) {
    const char* slash = path ? strrchr(path, '/') : nullptr;
    return slash ? slash + 1 : path ? path : "?";
}

void append_wait(const Thread& t) {
    append_thread(t);
    if (t.state == EXITED) {
        append(" has exited");
        return;
    }
    append(" waits in %s at %s:%d", t.waits_in, file_name(t.file), t.line);
    if (t.state == IN_WARP) append(" with mask 0x%08x", t.mask);
}

// Who waits where: one thread for each place, and how many more are there.
void append_waiting(const Block& b) {
    constexpr int PLACES = 6;
    const Thread* first[PLACES];
    int count[PLACES], places = 0;
    for (int i = 0; i < threads; ++i) {
        const Thread& t = b.thread[i];
        int place = 0;
        for (; place < places; ++place) {
            const Thread& other = *first[place];
            if (t.state == other.state && (t.state == EXITED || (t.line == other.line && t.waits_in == other.waits_in &&
                                                                 t.mask == other.mask && t.file == other.file))) {
                break;
            }
        }
        if (place == PLACES) continue;
        if (place == places) first[places] = &t, count[places++] = 0;
        ++count[place];
    }
    for (int place = 0; place < places; ++place) {
        append(place ? "; " : "");
        append_wait(*first[place]);
        if (count[place] > 1) append(" (and %d more)", count[place] - 1);
    }
}

// From a fiber: the launch ends here. All that was on the stacks is forgotten.
[[noreturn]] void stop() {
    failed = true;
    go(current->worker, nullptr);
    abort();
}

void begin_error() {
    append_block(*block);
    append(", ");
    append_thread(*current);
    append(": ");
}

// ---- barriers

const char* const BARRIER_NAMES[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"};
const char* const WARP_NAMES[] = {"__syncwarp",         "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
                                  "__shfl_xor_sync",    "__ballot_sync",     "__any_sync",        "__all_sync",
                                  "__match_any_sync",   "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
                                  "__reduce_max_sync",  "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
                                  "__reduce_or_sync",   "__reduce_xor_sync"};

void wait_in(Thread& t, State state, const char* name, int line, const char* file) {
    t.state = state, t.waits_in = name, t.line = line, t.file = file;
}

void open_block_barrier(Block& b) {
    b.result = b.kind == COUNT ? b.ones : b.kind == AND ? b.ones == b.at_barrier : b.ones != 0;
    b.at_barrier = 0;
    if (launch->order == SHUFFLED) shuffle_ranks(b);
    for (int i = 0; i < threads; ++i) {
        if (b.thread[i].state == AT_BLOCK_BARRIER) set_ready(b.thread[i]);
    }
    progress = true;
}

unsigned long long reduced(WarpOp op, unsigned long long a, unsigned long long b) {
    switch (op) {
        case ADD: return a + b;
        case MIN_SIGNED: return int(a) < int(b) ? a : b;
        case MAX_SIGNED: return int(a) > int(b) ? a : b;
        case MIN_UNSIGNED: return unsigned(a) < unsigned(b) ? a : b;
        case MAX_UNSIGNED: return unsigned(a) > unsigned(b) ? a : b;
        case BITS_AND: return a & b;
        case BITS_OR: return a | b;
        default: return a ^ b;
    }
}

// All lanes of the group are here: each gets its result and may go on.
void open_group(Block& b, int warp, const Group group) {
    Thread* lanes = b.thread + warp * LANES;
    const unsigned here = group.arrived;
    unsigned ones = 0;
    unsigned long long total = 0;
    bool any = false, same = true;
    const unsigned long long leader = lanes[__builtin_ctz(here)].value;
    for (int lane = 0; lane < LANES; ++lane) {
        if (!(here >> lane & 1u)) continue;
        const unsigned long long value = lanes[lane].value;
        ones |= unsigned(value != 0) << lane;
        total = any ? reduced(group.op, total, value) : value;
        same = same && value == leader;
        any = true;
    }
    for (int lane = 0; lane < LANES; ++lane) {
        if (!(here >> lane & 1u)) continue;
        Thread& t = lanes[lane];
        switch (group.op) {
            case WARP_SYNC: break;
            case SHUFFLE:
            case SHUFFLE_UP:
            case SHUFFLE_DOWN:
            case SHUFFLE_XOR:  // a lane that does not take part has no value to give
                t.result = here >> t.source & 1u ? lanes[t.source].value : ~0ull;
                break;
            case BALLOT: t.result = ones; break;
            case ANY: t.result = ones != 0; break;
            case ALL: t.result = ones == here; break;
            case MATCH_ANY:
                t.result = 0;
                for (int other = 0; other < LANES; ++other) {
                    if (here >> other & 1u && lanes[other].value == t.value) t.result |= 1ull << other;
                }
                break;
            case MATCH_ALL: t.result = same ? here : 0; break;
            default: t.result = total;
        }
        // Among themselves the lanes change places.
        if (launch->order == SHUFFLED) {
            unsigned others = here & ~((2u << lane) - 1u);
            if (lane == 31) others = 0;
            int steps = int(random_below(__builtin_popcount(others) + 1));
            while (steps-- > 1) others &= others - 1;
            if (steps == 0) swap_ranks(b, t, lanes[__builtin_ctz(others)]);
        }
    }
    for (int lane = 0; lane < LANES; ++lane) {
        if (here >> lane & 1u) set_ready(lanes[lane]);
    }
    progress = true;
}

// The current thread has returned from the kernel.
void finish() {
    Block& b = *block;
    Thread& t = *current;
    const int number = int(&t - b.thread), lane = number % LANES;
    Warp& warp = b.warp[number / LANES];
    t.state = EXITED;
    warp.exited |= 1u << lane;
    for (int i = 0; i < warp.groups; ++i) {
        if (!(warp.group[i].mask >> lane & 1u)) continue;
        begin_error();
        append("it exits while ");
        append_wait(b.thread[number / LANES * LANES + __builtin_ctz(warp.group[i].arrived)]);
        append(", which names its lane %d", lane);
        stop();
    }
    --b.alive;
    progress = true;
    if (b.alive && b.at_barrier == b.alive) open_block_barrier(b);
}

[[noreturn]] void work() {
#if TILESMITH_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    for (;;) {
        entry->invoke(launch->args);
        finish();
        Worker* self = current->worker;
        current->worker = nullptr;
        Thread* next = pick();
        if (next && !next->worker) {  // the usual case where nobody waits: the next thread runs on this stack
            next->worker = self;
            enter(next);
            continue;
        }
        idle.push_back(self);
        go(self, next);  // comes back with another thread to run
    }
}

// ---- shared memory

// The static part has redzones under AddressSanitizer, which only code that it does not see may write.
__attribute__((no_sanitize("address", "undefined"))) void copy(unsigned char* to, const unsigned char* from, size_t bytes) {
#if TILESMITH_ASAN
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(to)[i] = from[i];
#else
    memcpy(to, from, bytes);
#endif
}

__attribute__((no_sanitize("address", "undefined"))) void fill(unsigned char* to, size_t bytes) {
#if TILESMITH_ASAN
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(to)[i] = POISON;
#else
    memset(to, POISON, bytes);
#endif
}

template <typename F>
void for_each_shared(F visit) {
    visit(dynamic_shared, size_t(launch->shared));
    for (int i = 0; i < entry->sections; ++i) {
        unsigned char* begin = reinterpret_cast<unsigned char*>(entry->shared[i][0]);
        if (begin) visit(begin, size_t(reinterpret_cast<unsigned char*>(entry->shared[i][1]) - begin));
    }
}

void poison_shared() { for_each_shared(fill); }

void save_shared(Block& b) {
    b.shared.clear();
    for_each_shared([&](unsigned char* from, size_t bytes) {
        b.shared.resize(b.shared.size() + bytes);
        copy(b.shared.data() + b.shared.size() - bytes, from, bytes);
    });
}

void load_shared(const Block& b) {
    size_t done = 0;
    for_each_shared([&](unsigned char* to, size_t bytes) {
        copy(to, b.shared.data() + done, bytes);
        done += bytes;
    });
}

bool canary_intact() {
#if !TILESMITH_ASAN
    for (int i = 0; i < CANARY; ++i) {
        if (dynamic_shared[launch->shared + i] != POISON) return false;
    }
#endif
    return true;
}

// ---- blocks

void start(Block& b, size_t number) {
    b.index = {unsigned(number % launch->grid[0]), unsigned(number / launch->grid[0] % launch->grid[1]),
               unsigned(number / launch->grid[0] / launch->grid[1])};
    b.alive = threads, b.at_barrier = b.at_grid = 0;
    for (int i = 0; i < threads; ++i) {
        Thread& t = b.thread[i];
        t.index = {unsigned(i % launch->block[0]), unsigned(i / launch->block[0] % launch->block[1]),
                   unsigned(i / launch->block[0] / launch->block[1])};
        t.rank = launch->order == BACKWARD ? threads - 1 - i : i;
        b.thread_at[t.rank] = short(i);
        t.state = READY;
        t.worker = nullptr;
    }
    if (launch->order == SHUFFLED) shuffle_ranks(b);
    for (int word = 0; word < WORDS; ++word) {
        const int bits = threads - 64 * word;
        b.ready[word] = bits >= 64 ? ~0ull : bits > 0 ? (1ull << bits) - 1ull : 0ull;
        b.yielded[word] = 0;
    }
    for (int first = 0; first < threads; first += LANES) {
        const int lanes = threads - first;
        b.warp[first / LANES] = {lanes >= LANES ? ~0u : (1u << lanes) - 1u, 0u, 0, {}};
    }
}

// Until no thread of the block can go on.
void run(Block& b) {
    block = &b;
    blockIdx = b.index;
    if (Thread* next = pick()) go(&main_worker, next);
    if (failed || canary_intact()) return;
    failed = true;
    append_block(b);
    append(": a thread wrote past the %d bytes of dynamic shared memory", launch->shared);
}

// The threads that only yielded may go on; false if there are none.
bool wake_yielded(Block& b) {
    bool any = false;
    for (int word = 0; word < WORDS; ++word) {
        any = any || b.yielded[word];
        b.ready[word] |= b.yielded[word];
        b.yielded[word] = 0;
    }
    return any;
}

void report_stuck(const Block& b, const char* what) {
    failed = true;
    append_block(b);
    append(": %s: ", what);
    append_waiting(b);
}

void run_one_by_one(const std::vector<unsigned>& numbers, size_t blocks) {
    static Block b;
    for (size_t i = 0; i < blocks && !failed; ++i) {
        start(b, numbers.empty() ? (launch->order == BACKWARD ? blocks - 1 - i : i) : numbers[i]);
        poison_shared();
        run(b);
        int rounds = 0;
        while (b.alive && !failed) {
            if (progress) progress = false, rounds = 0;
            if (!wake_yielded(b)) return report_stuck(b, "no thread can go on");
            if (++rounds > MAX_SPINS) return report_stuck(b, "its threads spin on memory that nobody changes");
            run(b);
        }
    }
}

void open_grid_barrier(std::vector<Block*>& blocks) {
    for (Block* b : blocks) {
        block = b;
        b->at_grid = 0;
        if (launch->order == SHUFFLED) shuffle_ranks(*b);
        for (int i = 0; i < threads; ++i) {
            if (b->thread[i].state == AT_GRID_BARRIER) set_ready(b->thread[i]);
        }
    }
    if (launch->order == SHUFFLED) {
        for (size_t i = blocks.size(); i-- > 1;) std::swap(blocks[i], blocks[random_below(unsigned(i) + 1)]);
    }
    progress = true;
}

void run_together(std::vector<Block*>& blocks) {
    poison_shared();
    for (Block* b : blocks) save_shared(*b);
    int rounds = 0;
    for (;;) {
        progress = false;
        size_t ended = 0, parked = 0;
        bool spinning = false;
        for (Block* b : blocks) {
            if (b->alive && b->at_grid < b->alive) {
                load_shared(*b);
                run(*b);
                save_shared(*b);
                if (failed) return;
            }
            ended += !b->alive;
            parked += b->alive && b->at_grid == b->alive;
        }
        if (ended == blocks.size()) return;
        for (Block* b : blocks) {
            if (b->alive && b->at_grid == b->alive && b->thread[0].state == EXITED) {
                return report_stuck(*b, "the grid's barrier waits for each block's first thread");
            }
        }
        if (parked == blocks.size()) {
            open_grid_barrier(blocks);
            continue;
        }
        for (Block* b : blocks) spinning = wake_yielded(*b) || spinning;
        rounds = progress ? 0 : rounds + 1;
        if (spinning && rounds <= MAX_SPINS) continue;
        for (Block* b : blocks) {
            if (b->alive && b->at_grid < b->alive) {
                return report_stuck(*b, spinning ? "its threads spin on memory that nobody changes" : "no thread can go on");
            }
        }
        for (Block* b : blocks) {
            if (b->alive) {
                report_stuck(*b, "it waits for the grid, of which a block has ended");
                return;
            }
        }
    }
}

}  // namespace

// ---- what kernels call

int block_barrier(BarrierKind kind, int predicate, int line, const char* file) {
    Block& b = *block;
    Thread& t = *current;
    wait_in(t, AT_BLOCK_BARRIER, BARRIER_NAMES[kind], line, file);
    if (b.at_barrier == 0) {
        b.kind = kind, b.first = &t, b.ones = 0;
    } else if (b.kind != kind || b.first->line != line || strcmp(b.first->file, file) != 0) {
        begin_error();
        append("a barrier that diverges: it waits in %s at %s:%d while ", BARRIER_NAMES[kind], file_name(file), line);
        append_wait(*b.first);
        stop();
    }
    ++b.at_barrier;
    b.ones += predicate != 0;
    if (b.at_barrier == b.alive) open_block_barrier(b);
    suspend();
    return b.result;
}

void grid_barrier(int line, const char* file) {
    wait_in(*current, AT_GRID_BARRIER, "grid.sync", line, file);
    if (!launch->cooperative) fail("grid.sync() in a launch that is not cooperative", line, file);
    ++block->at_grid;
    suspend();
}

unsigned long long warp_collective(WarpOp op, unsigned mask, unsigned long long value, int source, int line,
                                   const char* file) {
    Block& b = *block;
    Thread& t = *current;
    const int number = int(&t - b.thread), lane = number % LANES, first = number - lane;
    const unsigned bit = 1u << lane;
    Warp& warp = b.warp[number / LANES];
    wait_in(t, IN_WARP, WARP_NAMES[op], line, file);
    t.mask = mask, t.value = value, t.source = source;
    if (!(mask & bit)) {
        begin_error();
        append("%s at %s:%d has mask 0x%08x without its own lane %d", WARP_NAMES[op], file_name(file), line, mask, lane);
        stop();
    }
    if (mask & warp.exited) {
        const int gone = __builtin_ctz(mask & warp.exited);
        begin_error();
        append("%s at %s:%d has mask 0x%08x, but its lane %d, ", WARP_NAMES[op], file_name(file), line, mask, gone);
        append_wait(b.thread[first + gone]);
        stop();
    }
    int mine = -1;
    for (int i = 0; i < warp.groups; ++i) {
        Group& group = warp.group[i];
        if (group.op == op && group.mask == mask) {
            mine = i;
        } else if ((group.arrived & mask) && (group.mask & bit)) {
            begin_error();
            append("warp functions that diverge: it waits in %s at %s:%d with mask 0x%08x while ", WARP_NAMES[op],
                   file_name(file), line, mask);
            append_wait(b.thread[first + __builtin_ctz(group.arrived & mask)]);
            stop();
        }
    }
    if (mine < 0) {
        mine = warp.groups++;
        warp.group[mine] = {op, mask, 0};
    }
    Group& group = warp.group[mine];
    group.arrived |= bit;
    if (group.arrived == (mask & warp.exists)) {
        const Group complete = group;
        group = warp.group[--warp.groups];
        open_group(b, number / LANES, complete);
    }
    suspend();
    return t.result;
}

unsigned alive_lanes() {
    const Warp& warp = block->warp[(current - block->thread) / LANES];
    return warp.exists & ~warp.exited;
}

void yield() {
    Thread& t = *current;
    wait_in(t, READY, "a loop that yields", 0, "?");
    block->yielded[t.rank / 64] |= 1ull << t.rank % 64;
    suspend();
}

void fail(const char* what, int line, const char* file) {
    begin_error();
    append("%s at %s:%d", what, file_name(file), line);
    stop();
}

}  // namespace tilesmith_host

using namespace tilesmith_host;

// Runs a grid. Returns 0, or 1 with a message.
extern "C" __attribute__((visibility("default"))) int tilesmith_run(const Entry* kernel, const Launch* what, char* text,
                                                                    size_t text_bytes) {
    entry = kernel, launch = what, message = text, message_bytes = text_bytes;
    message[0] = '\0';
    failed = progress = false;
    threads = int(what->block[0] * what->block[1] * what->block[2]);
    gridDim = dim3(what->grid[0], what->grid[1], what->grid[2]);
    blockDim = dim3(what->block[0], what->block[1], what->block[2]);
    random_state = 0x9e3779b97f4a7c15ull;
    if (threads > kernel->max_threads) {
        append("%d threads a block; its __launch_bounds__ allow %d", threads, kernel->max_threads);
        return 1;
    }
    const size_t blocks = size_t(what->grid[0]) * what->grid[1] * what->grid[2];

    size_t in_sections = 0;
    for_each_shared([&](unsigned char*, size_t bytes) { in_sections += bytes; });
    in_sections -= size_t(what->shared);
    if (!TILESMITH_ASAN && in_sections > 48 * 1024) {
        append("%zu bytes of static shared memory; a GPU allows %d", in_sections, 48 * 1024);
        return 1;
    }
    if (what->shared < 0 || size_t(what->shared) + (TILESMITH_ASAN ? 0 : in_sections) > size_t(MAX_DYNAMIC)) {
        append("%d bytes of dynamic and %zu of static shared memory; a GPU allows %d", what->shared, in_sections,
               MAX_DYNAMIC);
        return 1;
    }
#if TILESMITH_ASAN
    pthread_attr_t attributes;
    void* stack;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &main_worker.bytes);
    pthread_attr_destroy(&attributes);
    main_worker.stack = static_cast<char*>(stack);
    __asan_unpoison_memory_region(dynamic_shared, sizeof(dynamic_shared));
    __asan_poison_memory_region(dynamic_shared + what->shared, sizeof(dynamic_shared) - size_t(what->shared));
#else
    memset(dynamic_shared + what->shared, POISON, CANARY);
#endif

    if (what->cooperative) {
        std::vector<Block*> all(blocks);
        for (size_t i = 0; i < blocks; ++i) {
            all[i] = new Block();
            start(*all[i], what->order == BACKWARD ? blocks - 1 - i : i);
        }
        run_together(all);
        for (Block* b : all) delete b;
    } else {
        std::vector<unsigned> numbers;
        if (what->order == SHUFFLED) {
            numbers.resize(blocks);
            for (size_t i = 0; i < blocks; ++i) {
                const unsigned other = random_below(unsigned(i) + 1);
                numbers[i] = numbers[other], numbers[other] = unsigned(i);
            }
        }
        run_one_by_one(numbers, blocks);
    }
    if (failed) forget_stacks();
    return failed;
}
