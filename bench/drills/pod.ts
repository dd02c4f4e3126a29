/** A container of a pod: a process in the pod's namespace, which a cluster would start, probe and stop like this. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../services/lib/process/errors.ts';
import { formatHostPort } from '../../services/lib/process/host-port.ts';
import type { PodPlace } from './network.ts';

export interface PodOptions {
  readonly name: string;
  readonly place: PodPlace;
  /** The program with its arguments; nothing of our environment but PATH reaches it. */
  readonly command: readonly string[];
  readonly env: NodeJS.ProcessEnv;
  readonly workingDir: string;
  readonly port: number;
  readonly metricsPort: number;
  /** Whether it ends when it loses its parent, by the channel that it then has to it. */
  readonly isService: boolean;
  /** Whether it is ready. */
  readonly probe: (pod: Pod) => Promise<boolean>;
  readonly preStopMs: number;
  /** Time from the beginning of preStop until it is killed, in ms. */
  readonly graceMs: number;
  readonly logFile: string;
}

/** Time to become ready, in ms: that which the chart gives a pod. */
const READY_TIMEOUT_MS = 600_000;
const PROBE_EVERY_MS = 100;
const LAST_BYTES = 2_000;

export class Pod {
  readonly #options: PodOptions;
  #child: ChildProcess | undefined;
  #isReady = false;

  constructor(options: PodOptions) {
    this.#options = options;
  }

  get name(): string {
    return this.#options.name;
  }

  get host(): string {
    return this.#options.place.host;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Whether it has become ready, and is not being stopped. */
  get isReady(): boolean {
    return this.#isReady;
  }

  /** The host:port that it serves on. */
  get address(): string {
    return formatHostPort(this.host, this.#options.port);
  }

  /** The host:port of its probes and metrics. */
  get metricsAddress(): string {
    return formatHostPort(this.host, this.#options.metricsPort);
  }

  /**
   * Starts it and waits until its probe succeeds.
   * @throws ServingError worker_lost, with the end of its log, if it does not become ready.
   */
  async start(): Promise<void> {
    const { name, place, command, env, workingDir, isService, probe, logFile } = this.#options;
    const log = await open(logFile, 'a');
    const [file, ...words] = [...place.through, ...command];
    const stdio: ('ignore' | 'ipc' | number)[] = ['ignore', log.fd, log.fd, ...(isService ? (['ipc'] as const) : [])];
    const child = spawn(file!, words, { cwd: workingDir, env: { PATH: process.env['PATH'], ...env }, stdio });
    child.on('error', () => {}); // it has no pid then, and ends below
    await log.close();
    this.#child = child;
    const deadlineMs = performance.now() + READY_TIMEOUT_MS;
    while (!(await probe(this))) {
      const hasEnded = child.pid === undefined || child.exitCode !== null || child.signalCode !== null;
      if (!hasEnded && performance.now() < deadlineMs) {
        await sleep(PROBE_EVERY_MS);
        continue;
      }
      await this.stop();
      throw new ServingError('worker_lost', `${name} did not become ready; its log ends:\n${await this.#logEnd()}`);
    }
    this.#isReady = true;
  }

  /** Stops it without preStop, and kills it after its grace period. */
  async stop(): Promise<void> {
    await this.#end(this.#options.graceMs);
  }

  kill(): void {
    this.#child?.kill('SIGKILL');
  }

  /**
   * Stops it as a cluster does: preStop, SIGTERM, and SIGKILL when the grace period is over. Then its namespace is
   * removed.
   * @throws ServingError worker_lost unless it ends with exit code 0.
   */
  async delete(): Promise<void> {
    await this.#drain();
    await this.#options.place.leave();
  }

  /** Starts it again at the same address, as a cluster does with a container that ends. */
  async restart(awayMs = 0): Promise<void> {
    await this.#drain();
    await sleep(awayMs);
    await this.start();
  }

  async #drain(): Promise<void> {
    const { name, preStopMs, graceMs } = this.#options;
    this.#isReady = false;
    await sleep(preStopMs);
    if ((await this.#end(graceMs - preStopMs)) === 0) return;
    throw new ServingError('worker_lost', `${name} did not drain; its log ends:\n${await this.#logEnd()}`);
  }

  /** @returns its exit code; null if it was killed, or never ran. */
  async #end(graceMs: number): Promise<number | null> {
    this.#isReady = false;
    const child = this.#child;
    if (child?.pid === undefined) return null;
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
      await ended;
      clearTimeout(timer);
    }
    return child.exitCode;
  }

  async #logEnd(): Promise<string> {
    return (await readFile(this.#options.logFile, 'utf8')).slice(-LAST_BYTES);
  }
}
