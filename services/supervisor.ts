/**
 * The whole system on one machine: one supervised process per service. `llavacode up`, the demo, the benches and the
 * integration tests start it. Children are in process groups of their own, so that Ctrl-C reaches only the supervisor,
 * which stops the gateway first. If the supervisor dies, the children's IPC channel closes and they stop too.
 *
 * What runs inside is private to the system: its services share a secret that is made anew at each start, and refuse
 * whoever does not know it, since every user of the machine can connect to their ports.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import { createStream } from 'rotating-file-stream';
import { Deferred } from './lib/async/deferred.ts';
import { envName } from './lib/process/config.ts';
import { allowedCpus, divideCpus } from './lib/process/cpus.ts';
import { FINAL_EXIT_CODE, isErrorCode, ServingError } from './lib/process/errors.ts';
import { parseHostPort } from './lib/process/host-port.ts';
import { atPath, makeFolder } from './lib/process/os-errors.ts';
import { PACKAGE_ROOT } from './lib/process/package-root.ts';
import { IDLE } from './lib/process/priority.ts';
import {
  AWAIT_SETTINGS,
  type ReadyMessage,
  type SettingsMessage,
  type TaskMessage,
  type TaskNews,
} from './lib/process/supervised.ts';
import { writeSystemSecret } from './lib/process/system-secret.ts';
import { type MODES, SETTINGS } from './settings.ts';

export type Role = 'gateway' | 'prefill' | 'decode' | 'colocated' | 'indexer';

/**
 * The niceness of workers that share a machine with their gateway. They use all cores that they get, and the gateway
 * needs little, but at once: it gets three times their share of a core.
 */
export const WORKERS_NICE = 5;

/** By how much decode workers step back behind prefill workers of the same machine; see {@link decodeNice}. */
const DECODE_BEHIND = 5;

/**
 * The niceness of decode workers where other workers of the machine have `nice`. A client that waits for its first
 * token waits for the whole prompt, while a decode step that is late delays each running sequence by that moment alone:
 * prefill gets three times the share of a core. 0 stays 0: then nobody is to step back. Nothing is behind {@link IDLE}.
 *
 * Beside attackers, p90 of an honest tenant's TTFT was 46 ms with this and 68 ms without: 5 minutes of `bench soak`
 * each, on two cores that other jobs used too; without attackers it was 27 and 29 ms.
 */
export const decodeNice = (nice: number) =>
  nice === 0 || nice === IDLE ? nice : Math.min(IDLE - 1, nice + DECODE_BEHIND);

/** The settings of one child, by their names in SETTINGS. */
export type Flags = Readonly<Record<string, string | number | boolean>>;

/**
 * `disaggregated`: prefill and decode workers; `colocated`: workers that do both; `hybrid`: prefill workers beside
 * colocated ones, and each prompt goes where it is better computed.
 */
type Mode = (typeof MODES)[number];

export interface SystemOptions {
  readonly mode: Mode;
  readonly prefill: number;
  readonly decode: number;
  /** The folder for logs, of this system alone. While the system runs the file of its secret lies there too. */
  readonly logs: string;
  /** Settings of the gateway. */
  readonly gateway: Flags;
  /** Settings of every worker. */
  readonly workers: Flags;
  readonly prefillOnly?: Flags;
  readonly decodeOnly?: Flags;
  readonly colocatedOnly?: Flags;
  /** Settings of the indexer; undefined starts none. */
  readonly indexer?: Flags;
  /** Give each worker cores of its own, so that prompts and decode steps do not disturb each other. */
  readonly pin?: boolean;
  /** Called when a child has died and is started again. */
  readonly onRestart?: (role: string, reason: string) => void;
  /** Called when a child has ended with an error that starting it again cannot mend; it is not started again. */
  readonly onFinal?: (error: ServingError) => void;
  /** Ends the start of the system: what was started is stopped again, and the signal's reason is thrown. */
  readonly stop?: AbortSignal;
}

export interface ProcessOptions extends Pick<SystemOptions, 'logs' | 'onRestart' | 'onFinal'> {
  /** Words before the command that run it elsewhere, such as `ip netns exec NAME`; they must exec the command. */
  readonly through?: readonly string[];
}

export interface RunningSystem {
  readonly url: string;
  readonly processes: readonly ServiceProcess[];
  /** The file of the secret by which its services know each other. */
  readonly rpcSecretFile: string;
  /** Stops everything, the gateway first. */
  close(): Promise<void>;
}

const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
/** Time to become ready, in ms: a first start of a large model packs its weights for minutes. */
const READY_TIMEOUT_MS = 600_000;
/** Time after a child's own drain timeout until it is killed, in ms. */
const KILL_AFTER_MS = 10_000;
/** A log file is put aside at this size, as NAME.log.1 to NAME.log.3. */
const LOG_FILES = { size: '32M', rotate: 3 } as const;
/** Lines of a child that did not start that its error shows. */
const LAST_LINES = 12;
/** A process that has been ready for so long does not die of its start, in ms. */
const STABLE_MS = 2_000;
const RESTART_DELAY_MS = { first: 250, longest: 10_000 };

/** The log files of a child, and the last lines of its output since its latest start. */
interface ChildLog {
  readonly dir: string;
  readonly name: string;
  lastLines: readonly string[];
}

export class ServiceProcess {
  readonly name: string;
  readonly #role: Role;
  readonly #log: ChildLog;
  readonly #onRestart: (role: string, reason: string) => void;
  readonly #onFinal: (error: ServingError) => void;
  readonly #through: readonly string[];
  #flags: Flags;
  /** Settings that are known later; undefined once they are. */
  #later: Promise<Flags> | undefined;
  #child: ReturnType<typeof spawn> | undefined;
  #stopping = false;
  #readyAtMs = 0;
  #restartDelayMs = RESTART_DELAY_MS.first;
  #address: ReadyMessage | undefined;

  /** @param later settings that are not known yet: the process loads its code meanwhile, and waits for them. */
  constructor(name: string, role: Role, flags: Flags, options: ProcessOptions, later?: Promise<Flags>) {
    this.name = name;
    this.#role = role;
    this.#flags = flags;
    this.#later = later;
    later?.catch(() => {}); // whoever waits for what they depend on has the error
    this.#log = { dir: options.logs, name: `${name}.log`, lastLines: [] };
    this.#onRestart = options.onRestart ?? (() => {});
    this.#onFinal = options.onFinal ?? (() => {});
    this.#through = options.through ?? [];
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** The host:port that it serves on. */
  get address(): string {
    return this.#address?.address ?? '';
  }

  /** The host:port of its /metrics. */
  get metricsAddress(): string {
    return this.#address?.metricsAddress ?? '';
  }

  /**
   * Starts the process and waits until it is ready.
   * @throws ServingError worker_lost, with the end of its log, when it does not become ready.
   */
  async start(): Promise<void> {
    const child = spawn(this.#role, this.#flags, this.#log, this.#through, this.#later !== undefined);
    this.#child = child;
    const exited = child.then((result) =>
      result.signal ? `killed by ${result.signal}` : `exit code ${result.exitCode}`,
    );
    const ready = child.getOneMessage().then(
      (message) => message as unknown as ReadyMessage,
      () => exited,
    );
    if (this.#later !== undefined) await Promise.race([this.#sendLater(this.#later), exited]);
    const timeout = AbortSignal.timeout(READY_TIMEOUT_MS);
    const outcome = await Promise.race([
      ready,
      exited,
      new Promise<string>((resolve) => timeout.addEventListener('abort', () => resolve('not ready in time'))),
    ]);
    if (typeof outcome === 'string') {
      child.kill('SIGKILL');
      if ((await child).exitCode === FINAL_EXIT_CODE) throw this.#lastError();
      throw new ServingError(
        'worker_lost',
        `${this.name} did not start (${outcome}); its log ends:\n${this.#log.lastLines.join('\n')}`,
      );
    }
    this.#address = outcome;
    this.#readyAtMs = performance.now();
    void child.then(({ exitCode }) => {
      if (exitCode === FINAL_EXIT_CODE && !this.#stopping) this.#onFinal(this.#lastError());
      else void exited.then((reason) => this.#died(reason));
    });
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#child?.kill('SIGTERM');
    await this.#child;
  }

  /**
   * Lets the process drain and starts it again at the same address.
   * @param awayMs pause before it is started, in ms.
   * @throws ServingError worker_lost when it does not end by itself with exit code 0, or does not start.
   */
  async restart(awayMs = 0): Promise<void> {
    this.#stopping = true;
    this.#child?.kill('SIGTERM');
    const ended = await this.#child;
    this.#stopping = false;
    if (ended?.exitCode !== 0) {
      throw new ServingError(
        'worker_lost',
        `${this.name} did not drain; its log ends:\n${this.#log.lastLines.join('\n')}`,
      );
    }
    if (awayMs > 0) await new Promise((resolve) => setTimeout(resolve, awayMs));
    await this.start();
  }

  async #sendLater(later: Promise<Flags>): Promise<void> {
    const flags = await later;
    this.#flags = { ...this.#flags, ...flags };
    this.#later = undefined;
    const values = Object.entries(flags).map(([name, value]) => [name, String(value)]);
    const message: SettingsMessage = { settings: Object.fromEntries(values) };
    this.#child?.send(message, () => {}); // a child that is gone is seen by its end
  }

  /**
   * Has the process perform a task; see services/lib/process/supervised.ts. One at a time.
   * @throws ServingError of the task; worker_lost when the process ends before; the signal's reason: the task goes on
   *   then.
   */
  perform(task: unknown, onProgress: (progress: unknown) => void, signal: AbortSignal): Promise<unknown> {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const settle = (done: () => void) => {
        signal.removeEventListener('abort', onAbort);
        child?.off('message', onMessage).off('disconnect', onGone);
        done();
      };
      const onMessage = (message: unknown) => {
        const news = message as TaskNews;
        if ('progress' in news) onProgress(news.progress);
        else if ('failure' in news) settle(() => reject(new ServingError(news.failure.code, news.failure.message)));
        else settle(() => resolve(news.result));
      };
      const onGone = () => settle(() => reject(new ServingError('worker_lost', `${this.name} ended before its task`)));
      const onAbort = () => settle(() => reject(signal.reason));
      if (!child?.connected) return onGone();
      signal.addEventListener('abort', onAbort, { once: true });
      child.on('message', onMessage).once('disconnect', onGone);
      child.send({ task } satisfies TaskMessage, () => {});
    });
  }

  /** The error that the process logged last before it ended. */
  #lastError(): ServingError {
    for (const line of this.#log.lastLines.toReversed()) {
      const { code, message } = errorIn(line);
      if (code !== undefined && isErrorCode(code)) return new ServingError(code, `${this.name}: ${message}`);
    }
    return new ServingError('config_invalid', `${this.name} ended; its log ends:\n${this.#log.lastLines.join('\n')}`);
  }

  /**
   * Starts the process again at the same address, after a delay that doubles with each try, and with each process that
   * became ready and died soon.
   */
  async #died(reason: string): Promise<void> {
    const port = (address: string) => parseHostPort(address)?.port ?? 0;
    this.#flags = { ...this.#flags, port: port(this.address) };
    if (this.#role !== 'gateway') this.#flags = { ...this.#flags, metricsPort: port(this.metricsAddress) };
    if (performance.now() - this.#readyAtMs > STABLE_MS) this.#restartDelayMs = RESTART_DELAY_MS.first;
    while (!this.#stopping) {
      this.#onRestart(this.name, reason);
      await new Promise((resolve) => setTimeout(resolve, this.#restartDelayMs));
      this.#restartDelayMs = Math.min(this.#restartDelayMs * 2, RESTART_DELAY_MS.longest);
      if (this.#stopping) return;
      try {
        return await this.start();
      } catch (error) {
        reason = ServingError.from(error).message;
      }
    }
  }
}

/** The error of a line of a log; empty where the line is of another kind. */
function errorIn(line: string): { readonly code?: string; readonly message?: string } {
  try {
    return (JSON.parse(line) as { err?: object }).err ?? {};
  } catch {
    return {}; // the lines of native libraries are not JSON
  }
}

/**
 * Passes settings to a child as variables, because everybody on the machine can read the arguments of a process and the
 * store's URL may hold a password. Variables that were set for the supervisor are not passed on.
 */
function environmentOf(flags: Flags): Record<string, string | undefined> {
  const inherited = Object.keys(process.env).filter((name) => name.startsWith('LLAVACODE_'));
  return {
    ...Object.fromEntries(inherited.map((name) => [name, undefined])),
    ...Object.fromEntries(Object.entries(flags).map(([name, value]) => [envName(name), String(value)])),
  };
}

/** @param awaits whether the child is to wait for settings that come later. */
function spawn(role: Role, flags: Flags, log: ChildLog, through: readonly string[], awaits: boolean) {
  const output = createStream(log.name, { path: log.dir, ...LOG_FILES });
  // A debugger's port is taken by this process already.
  const inherited = process.execArgv.filter((word) => !word.startsWith('--inspect'));
  const [file, ...words] = [...through, process.execPath, ...inherited, CLI, role, ...(awaits ? [AWAIT_SETTINGS] : [])];
  const child = execa(file!, words, {
    detached: true,
    ipc: true,
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    buffer: false,
    reject: false,
    forceKillAfterDelay: SETTINGS.drainTimeoutMs.parse(flags.drainTimeoutMs) + KILL_AFTER_MS,
    env: environmentOf(flags),
  });
  log.lastLines = [];
  for (const stream of [child.stdout, child.stderr]) {
    stream.pipe(output, { end: false });
    createInterface(stream).on('line', (line) => {
      log.lastLines = [...log.lastLines, line].slice(-LAST_LINES);
    });
  }
  output.on('error', (error) => {
    process.stderr.write(`${join(log.dir, log.name)}: no more is written there: ${error.message}\n`);
    // Go on reading: a child whose pipe is full would wait for us.
    for (const stream of [child.stdout, child.stderr]) stream.unpipe(output).resume();
  });
  void child.then(() => output.end());
  return child;
}

/**
 * Starts the workers, the indexer and the gateway, which serves when the others are ready.
 * @throws ServingError worker_lost when a process does not come up (the others are stopped again); config_invalid when
 *   there are fewer cores than workers to pin; the reason of `stop`.
 */
export async function startSystem(options: SystemOptions): Promise<RunningSystem> {
  await makeFolder(options.logs);
  const rpcSecretFile = join(options.logs, 'rpc-secret');
  // A process that will not come back keeps others from becoming ready: nobody waits for them then.
  const broken = new Deferred<never>();
  const onFinal = (error: ServingError) => {
    broken.reject(error);
    options.onFinal?.(error);
  };
  const interrupt = () => broken.reject(options.stop?.reason);
  options.stop?.addEventListener('abort', interrupt);
  const make = (role: Role, i: number, flags: Flags, later?: Promise<Flags>) =>
    new ServiceProcess(`${role}-${i}`, role, flags, { ...options, onFinal }, later);
  const { prefillOnly, decodeOnly } = options;
  const common = { ...options.workers, port: 0, metricsPort: 0, rpcSecretFile };
  const workerCount = options.prefill + (options.mode === 'colocated' ? 0 : options.decode);
  // Each worker takes one run of cores as it is made.
  const cores = options.pin ? divideCpus(allowedCpus(), workerCount) : [];
  const ownCores = (): Flags => {
    const cpus = cores.shift();
    return cpus ? { cpus: cpus.join(',') } : {};
  };
  const pool = (role: Role, count: number, flags: Flags) =>
    Array.from({ length: count }, (_, i) => make(role, i, { ...common, ...flags, ...ownCores() }));
  const shared = { ...prefillOnly, ...decodeOnly, ...options.colocatedOnly };
  const dedicated = options.mode === 'colocated' ? [] : pool('prefill', options.prefill, prefillOnly ?? {});
  const decode =
    options.mode === 'disaggregated'
      ? pool('decode', options.decode, { ...decodeOnly, nice: decodeNice(Number(options.workers['nice'] ?? 0)) })
      : pool('colocated', options.mode === 'colocated' ? options.prefill : options.decode, shared);
  // Colocated workers compute prompts as well.
  const prefill = options.mode === 'disaggregated' ? dedicated : [...dedicated, ...decode];
  const indexer = options.indexer && make('indexer', 0, { ...options.indexer, port: 0, metricsPort: 0, rpcSecretFile });
  const workers = [...new Set([...prefill, ...decode, ...(indexer ? [indexer] : [])])];
  const started: ServiceProcess[] = [];
  const close = async () => {
    // The gateway stops first, because its requests in flight need the workers.
    for (const process of started.toReversed()) {
      if (process.name.startsWith('gateway')) await process.stop();
    }
    await Promise.all(started.map((process) => process.stop()));
    await rm(rpcSecretFile, { force: true });
  };
  try {
    await atPath(rpcSecretFile, () => writeSystemSecret(rpcSecretFile));
    started.push(...workers);
    const workersUp = Promise.all(workers.map((worker) => worker.start()));
    const addresses = workersUp.then(() => ({
      prefillWorkers: prefill.map((worker) => worker.address).join(','),
      decodeWorkers: decode.map((worker) => worker.address).join(','),
      ...(indexer ? { indexer: indexer.address } : {}),
    }));
    // It loads its code while the workers start.
    const gateway = make('gateway', 0, { ...options.gateway, rpcSecretFile }, addresses);
    started.push(gateway);
    await Promise.race([Promise.all([workersUp, gateway.start()]), broken.promise]);
    const scheme = options.gateway.tlsCert ? 'https' : 'http';
    return { url: `${scheme}://${gateway.address}`, processes: started, rpcSecretFile, close };
  } catch (error) {
    await close();
    throw error;
  } finally {
    options.stop?.removeEventListener('abort', interrupt);
  }
}
