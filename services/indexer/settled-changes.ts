/** Paths that change, gathered until they have settled: an editor writes a file in several steps, git a whole tree. */
export class SettledChanges {
  readonly #quietMs: number;
  readonly #patienceMs: number;
  #firstMs = 0;
  #paths = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #settled = false;
  #ended = false;
  #wake = () => {};

  /**
   * @param quietMs changes have settled when none has come for this long.
   * @param patienceMs changes wait no longer than this, however many come.
   */
  constructor(quietMs: number, patienceMs: number) {
    this.#quietMs = quietMs;
    this.#patienceMs = patienceMs;
  }

  add(path: string): void {
    if (this.#ended) return;
    const nowMs = performance.now();
    if (this.#paths.size === 0) this.#firstMs = nowMs;
    this.#paths.add(path);
    const leftMs = this.#firstMs + this.#patienceMs - nowMs;
    if (leftMs <= 0) return;
    this.#settled = false;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(
      () => {
        this.#settled = true;
        this.#wake();
      },
      Math.min(this.#quietMs, leftMs),
    );
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#ended = true;
    this.#wake();
  }

  /** Takes the changed paths once there are some and they have settled; an empty set if it was ended. */
  async take(): Promise<ReadonlySet<string>> {
    if (!this.#settled && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const paths = this.#paths;
    this.#paths = new Set();
    this.#settled = false;
    return paths;
  }
}
