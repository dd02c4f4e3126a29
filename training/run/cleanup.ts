/** What must be given back when a run ends, however it ends. (Node 20 has no AsyncDisposableStack.) */
export class Cleanup implements AsyncDisposable {
  readonly #tasks: (() => unknown)[] = [];

  /** Runs `task` at the end, before all that were given earlier. */
  defer(task: () => unknown): void {
    this.#tasks.push(task);
  }

  /** @throws the first error, after all tasks have run. */
  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = [];
    for (const task of this.#tasks.splice(0).toReversed()) {
      try {
        await task();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }
}
