/**
 * The order in which a process uses a device. Two sessions of WebGPU that run at once crash the process (ONNX Runtime
 * 1.30, 3 of 3 tries), and so does an input that is bound, and thereby copied, while another session runs. Every run,
 * copy and release on a device therefore goes through its one lane.
 */

export interface DeviceLane {
  /**
   * Runs an action when its turn comes. An action must not wait for another one of the same lane.
   * @param signal ends the wait for the turn. An action that has begun is never abandoned: it should end early by the
   *   same signal, and the caller gets the signal's reason when it has really ended.
   * @throws the signal's reason; what the action throws.
   */
  run<T>(action: () => T | Promise<T>, signal?: AbortSignal): Promise<T>;
  /** Runs a short synchronous action, such as freeing memory, after all that was asked for before. */
  after(action: () => void): void;
}

/**
 * Time after which an action counts as hung, in ms: that in which a worker has to become ready. The first run of a
 * large model compiles for minutes on a machine that is busy.
 */
const HUNG_MS = 600_000;

/**
 * A lane of a device: first come, first served, one action at a time. Its length has no bound of its own: callers wait
 * for their actions, so each request, stream of KV and indexing run has at most one in it.
 *
 * Actions use threads of libuv's pool, any of its four but one at a time, and that is right for CUDA too (ONNX
 * Runtime's cuda_execution_provider.cc): a run selects its device itself when it starts, on whatever thread it is, and
 * when it ends it puts the thread's cuBLAS and cuDNN handles into a pool of the session, from which the next run takes
 * them, also on another thread. Under a lane a session so has one set of handles, and at most one more from the thread
 * that opened it. Only recorded runs stay with their thread, which is why only WebGPU is asked to record any.
 *
 * A thread of the lane's own would cost more than it gives: koffi offers no fixed thread for its calls, a pool of one
 * thread (`UV_THREADPOOL_SIZE=1`) would make every file of the process wait for the device, and a worker thread would
 * take a message there and one back for every run, with all bound memory shared between the two.
 */
export class FifoLane implements DeviceLane {
  /** Called when an action has not ended for so many ms. It goes on to hold the lane. */
  onHung: ((afterMs: number) => void) | undefined;
  /** Each starts an action and says whether it has ended already; one that has not goes on to the next by itself. */
  readonly #waiting: (() => boolean)[] = [];
  #busy = false;

  /** Whether an action is under way. */
  get busy(): boolean {
    return this.#busy;
  }

  run<T>(action: () => T | Promise<T>, signal?: AbortSignal): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const turn = () => {
        signal?.removeEventListener('abort', leave);
        const hung = setTimeout(() => this.onHung?.(HUNG_MS), HUNG_MS);
        hung.unref(); // it keeps no process that has nothing else to do
        const done = (async () => {
          const result = await action();
          signal?.throwIfAborted();
          return result;
        })();
        // The lane goes on first: a caller that then frees memory finds it idle if nobody else waits.
        const ended = done.finally(() => {
          clearTimeout(hung);
          this.#next();
        });
        ended.then(resolve, reject);
        return false;
      };
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(turn), 1);
        reject(signal?.reason);
      };
      signal?.addEventListener('abort', leave, { once: true });
      this.#waiting.push(turn);
      if (!this.#busy) this.#next();
    });
  }

  after(action: () => void): void {
    if (!this.#busy) {
      action();
      return;
    }
    this.#waiting.push(() => {
      try {
        action();
      } catch (error) {
        queueMicrotask(() => {
          throw error; // nobody waits for it: it is an uncaught error of the process, and the lane goes on
        });
      }
      return true;
    });
  }

  /** Starts what waits, up to the first action that takes time. A loop, because thousands of releases may wait. */
  #next(): void {
    let ended = true;
    while (ended) {
      const turn = this.#waiting.shift();
      this.#busy = turn !== undefined;
      ended = turn?.() ?? false;
    }
  }
}

/** The CPU needs no lane: its sessions run side by side. */
export const NO_LANE: DeviceLane = {
  run: async (action, signal) => {
    signal?.throwIfAborted();
    return action();
  },
  after: (action) => action(),
};
