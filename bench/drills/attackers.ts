/**
 * The hostile tenants of a soak, in a process of their own that steps back behind all others. Clients of a real system
 * run on machines of their own: here they would take the CPU from the system under test, and in the bench's own process
 * they would take turns of its event loop, which the TTFT of honest requests is measured on.
 */
import { TaskProcess } from '../harness/task-process.ts';
import type { AttackReport, AttackTask } from './attackers-child.ts';
import type { Rotation } from './hostile-rotation.ts';

/** Limit for the beginning, and for the end of all attacks, in ms: both take a moment. */
const TIMEOUT_MS = 30_000;

export class Attackers {
  readonly #process = new TaskProcess<AttackTask>(new URL('./attackers-child.js', import.meta.url), 'the attackers');
  #beganMs = 0;

  private constructor() {}

  /**
   * Lets them attack, each beginning with another attack.
   * @param now clock of the run, in ms.
   * @throws ServingError internal if the process does not start.
   */
  static async start(rotation: Rotation, now: () => number): Promise<Attackers> {
    const attackers = new Attackers();
    try {
      await attackers.#ask({ do: 'begin', rotation });
      attackers.#beganMs = now();
      return attackers;
    } catch (error) {
      await attackers.kill();
      throw error;
    }
  }

  /**
   * Ends the attacks.
   * @returns what came of them. Their times are of the run's clock, but for the ms that a message between two processes
   *   takes.
   * @throws ServingError internal if the process has ended before.
   */
  async end(): Promise<AttackReport> {
    try {
      const { attackers, turns } = (await this.#ask({ do: 'end' })) as AttackReport;
      const onClock = (ms: number) => this.#beganMs + ms;
      return {
        attackers,
        turns: turns.map(({ attack, fromMs, toMs }) => ({ attack, fromMs: onClock(fromMs), toMs: onClock(toMs) })),
      };
    } finally {
      await this.kill();
    }
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** Ends the process, whatever it does. */
  async kill(): Promise<void> {
    await this.#process.stop();
  }

  #ask(task: AttackTask): Promise<unknown> {
    return this.#process.ask(task, AbortSignal.timeout(TIMEOUT_MS));
  }
}
