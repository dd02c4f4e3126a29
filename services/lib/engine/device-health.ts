/**
 * Whether a device can still be used. After a reset of its driver every run fails until the process is started anew; so
 * it may be when its memory is used up. One failure is the request's own misfortune, the second in a row is the
 * device's: whoever owns the process hears of it by {@link DeviceHealth.lost}, and ends it. So it does of work that
 * does not come to an end.
 */
import { Deferred } from '../async/deferred.ts';
import { ServingError } from '../process/errors.ts';

/** Failures in a row after which a device counts as lost. */
const LIMIT = 2;

export class DeviceHealth {
  readonly #name: string;
  /**
   * Failures in a row, by kind of work. A success counts for its own kind only: a run that fetches nothing ends well
   * also on a device that is lost, and would hide that every fetch fails.
   */
  readonly #failures = new Map<string, number>();
  readonly #lost = new Deferred<ServingError>();
  #isLost = false;

  /** @param name of the device, for the error. */
  constructor(name: string) {
    this.#name = name;
  }

  /** Resolves with the reason when the device is lost. Never rejects. */
  get lost(): Promise<ServingError> {
    return this.#lost.promise;
  }

  get isLost(): boolean {
    return this.#isLost;
  }

  /**
   * Waits for work, but no longer than the device lives.
   * @throws ServingError runtime_failed when it is lost; what the work throws.
   */
  async unlessLost<T>(work: Promise<T>): Promise<T> {
    const lost = this.lost.then((reason) => {
      throw reason;
    });
    return Promise.race([work, lost]);
  }

  /**
   * Notes how work on the device ends.
   * @param kind of the work, as the error names it: `a decode step`.
   * @throws what the work throws.
   */
  async attempt<T>(kind: string, work: () => Promise<T>): Promise<T> {
    try {
      const result = await work();
      this.#failures.delete(kind);
      return result;
    } catch (error) {
      // A caller that hung up and an engine that is shut down say nothing about the device.
      if (error instanceof ServingError && error.code === 'runtime_failed') this.#failed(kind, error);
      throw error;
    }
  }

  /** Notes that a run or copy does not come to an end. @param afterMs for how long it has been waited for. */
  hung(afterMs: number): void {
    this.#lose(`${this.#name} hangs: a run or copy has not come to an end for ${afterMs / 1000} s`);
  }

  #failed(kind: string, error: ServingError): void {
    const failures = (this.#failures.get(kind) ?? 0) + 1;
    this.#failures.set(kind, failures);
    if (failures < LIMIT) return;
    this.#lose(`${this.#name} failed at ${kind} ${failures} times in a row (${error.message})`, error);
  }

  #lose(what: string, cause?: ServingError): void {
    this.#isLost = true;
    this.#lost.resolve(
      new ServingError(
        'runtime_failed',
        `${what}: its driver may have been reset, or its memory be used up. ` +
          `The process ends, so that it opens the device anew when it is started again`,
        { cause },
      ),
    );
  }
}
