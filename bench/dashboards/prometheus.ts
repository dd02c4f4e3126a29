/** A Prometheus of the bench: it scrapes processes that come and go, evaluates the rules, and answers queries. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { json } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { freePort } from '../system/redis.ts';

/** A process that is scraped. Prometheus calls it by its name, also when it comes back at another port. */
export interface Target {
  readonly job: string;
  readonly name: string;
  readonly address: string;
}

/** A series that a query gave, and its value at each step of the time; null where it had none. */
export interface Answered {
  readonly labels: Readonly<Record<string, string>>;
  readonly values: readonly (number | null)[];
}

export interface Span {
  /** Seconds of the day. */
  readonly fromS: number;
  readonly toS: number;
  readonly stepS: number;
}

export const SCRAPE_SECONDS = 5;
/** Time in which it must start, and in which it must answer, in ms. */
const START_MS = 60_000;
const ANSWER_MS = 30_000;

const MATRIX = z.object({
  status: z.literal('success'),
  data: z.object({
    result: z.array(
      z.object({ metric: z.record(z.string(), z.string()), values: z.array(z.tuple([z.number(), z.string()])) }),
    ),
  }),
});

export class Prometheus {
  readonly #dir: string;
  readonly #url: string;
  readonly #child: ChildProcess;

  private constructor(dir: string, url: string, child: ChildProcess) {
    this.#dir = dir;
    this.#url = url;
    this.#child = child;
  }

  /**
   * @param program the file, or its name on PATH.
   * @param rules file of its rules.
   * @throws ServingError path_unusable if there is no such program; internal if it does not start.
   */
  static async start(program: string, rules: string, targets: readonly Target[]): Promise<Prometheus> {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-prometheus-'));
    const port = await freePort();
    const config = {
      global: { scrape_interval: `${SCRAPE_SECONDS}s`, evaluation_interval: `${SCRAPE_SECONDS}s` },
      rule_files: [resolve(rules)],
      scrape_configs: [...new Set(targets.map(({ job }) => job))].map((job) => ({
        job_name: job,
        file_sd_configs: [{ files: [join(dir, `${job}.json`)], refresh_interval: `${SCRAPE_SECONDS}s` }],
      })),
    };
    const file = join(dir, 'prometheus.yml');
    await writeFile(file, JSON.stringify(config)); // JSON is YAML
    const args = [`--config.file=${file}`, `--storage.tsdb.path=${join(dir, 'data')}`];
    const child = spawn(program, [...args, `--web.listen-address=127.0.0.1:${port}`, '--log.level=warn'], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const onExit = () => child.kill('SIGKILL');
    process.once('exit', onExit);
    child.once('exit', () => process.off('exit', onExit));
    const prometheus = new Prometheus(dir, `http://127.0.0.1:${port}`, child);
    try {
      const failed = once(child, 'error').then(([error]) => {
        throw new ServingError('path_unusable', `${program} cannot be run: install prometheus, or name --prometheus`, {
          cause: error,
        });
      });
      await Promise.race([failed, prometheus.#started(targets)]);
      failed.catch(() => {});
      return prometheus;
    } catch (error) {
      await prometheus.close();
      throw error;
    }
  }

  async #started(targets: readonly Target[]): Promise<void> {
    await this.scrape(targets);
    const signal = AbortSignal.timeout(START_MS);
    for (;;) {
      const ready = await this.#get('/-/ready').catch(() => undefined);
      ready?.resume();
      if (ready?.statusCode === 200) return;
      if (signal.aborted || this.#child.exitCode !== null)
        throw new ServingError('internal', 'prometheus did not start: its messages are above');
      await sleep(200);
    }
  }

  /** Tells it where the processes are now. */
  async scrape(targets: readonly Target[]): Promise<void> {
    for (const job of new Set(targets.map((target) => target.job))) {
      const file = join(this.#dir, `${job}.json`);
      const of = targets.filter((target) => target.job === job);
      const groups = of.map(({ name, address }) => ({ targets: [address], labels: { instance: name } }));
      await writeFile(`${file}.new`, JSON.stringify(groups));
      await rename(`${file}.new`, file);
    }
  }

  /** @throws ServingError internal if it refuses the query. */
  async ask(expr: string, { fromS, toS, stepS }: Span): Promise<Answered[]> {
    const query = new URLSearchParams({ query: expr, start: `${fromS}`, end: `${toS}`, step: `${stepS}` });
    const answer = await json(await this.#get(`/api/v1/query_range?${query}`));
    const parsed = MATRIX.safeParse(answer);
    if (!parsed.success) throw new ServingError('internal', `prometheus refused ${expr}: ${JSON.stringify(answer)}`);
    const steps = Math.floor((toS - fromS) / stepS) + 1;
    return parsed.data.data.result.map(({ metric, values }) => {
      const at = new Map(values.map(([atS, value]) => [Math.round((atS - fromS) / stepS), Number(value)]));
      const valueAt = (i: number) => {
        const value = at.get(i);
        return value === undefined || !Number.isFinite(value) ? null : Number(value.toPrecision(4));
      };
      return { labels: metric, values: Array.from({ length: steps }, (_, i) => valueAt(i)) };
    });
  }

  #get(path: string) {
    return sendRequest({ method: 'GET', url: `${this.#url}${path}`, signal: AbortSignal.timeout(ANSWER_MS) });
  }

  async close(): Promise<void> {
    const { pid, exitCode, signalCode } = this.#child;
    if (pid !== undefined && exitCode === null && signalCode === null) {
      const exited = once(this.#child, 'exit');
      this.#child.kill('SIGKILL');
      await exited;
    }
    await rm(this.#dir, { recursive: true, force: true });
  }
}
