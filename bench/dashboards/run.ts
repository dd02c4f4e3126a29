/** Runs `bench dashboards`: a system with load and losses, scraped by a Prometheus, which is then asked all queries. */
import { mkdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../services/lib/process/errors.ts';
import { Fleet } from '../drills/fleet.ts';
import { makeReferences } from '../drills/streams.ts';
import { type OnProgress, run } from '../harness/run.ts';
import { runIndexCommand } from '../system/cli.ts';
import { type BenchModel, openModel } from '../system/model.ts';
import { PromptMaker } from '../system/prompts.ts';
import { findRedis, launchServer, type RedisServer } from '../system/redis.ts';
import type { DashboardsOptions } from './command.ts';
import { live, tenantsOf } from './life.ts';
import { answerAll, type DashboardsResult, readDashboards } from './panels.ts';
import { Prometheus, SCRAPE_SECONDS, type Target } from './prometheus.ts';
import { DASHBOARDS_BENCH } from './report.ts';

const REFERENCES = 4;
/** Values of each line. */
const STEPS = 72;
/** As Grafana computes `$__rate_interval` for this interval of scrapes. */
const RATE_INTERVAL = `${4 * SCRAPE_SECONDS}s`;

/** Nothing is judged here: a machine that is busy with other work must not end the run. In ms. */
const PATIENT = { stallTimeoutMs: 15_000, retrievalBudgetMs: 5_000, requestTimeoutMs: 60_000, targetTtftMs: 30_000 };

const NOT_NICE = { nice: 0 };

export async function runDashboards(options: DashboardsOptions): Promise<void> {
  const model = await openModel(options.model, options);
  await run(DASHBOARDS_BENCH, options, { models: [model], settings: { ...options } }, async (onProgress) => {
    const binary = await findRedis();
    if (!binary) throw new ServingError('path_unusable', 'no redis-server on PATH: install redis');
    const redis = await launchServer(binary);
    try {
      return await measured(model, options, redis, onProgress);
    } finally {
      await redis.stop();
    }
  });
}

async function measured(
  model: BenchModel,
  options: DashboardsOptions,
  redis: RedisServer,
  onProgress: OnProgress,
): Promise<DashboardsResult> {
  const { data, path, observability, prometheus: program } = options;
  const { bundle } = model;
  const [repo, store] = [basename(path), `${redis.url}/0`];
  const dashboards = await readDashboards(observability);
  await mkdir(data, { recursive: true });
  await runIndexCommand({ bundle, store, repo, path });
  const prompts = await PromptMaker.load(repo, path, model.tokenizer);
  onProgress('starting');
  const gateway = { ...PATIENT, metricsNetworks: '127.0.0.1', rowCacheBytes: 0 }; // all rows come from the store
  const tenants = tenantsOf(Date.now());
  const fleet = await Fleet.start({ bundle, store, data, workers: 2, tenants, gateway, each: NOT_NICE });
  try {
    const prometheus = await Prometheus.start(program, join(observability, 'rules.yml'), targetsOf(fleet));
    const moving = new AbortController();
    const told = tell(prometheus, fleet, moving.signal);
    try {
      const fromS = Math.floor(Date.now() / 1000);
      const references = await makeReferences(fleet, prompts, REFERENCES);
      await live({ ...options, fleet, references, redis, store, bundle, onProgress });
      await sleep(2_000 * SCRAPE_SECONDS); // what happened last is scraped, too
      onProgress('asking');
      const toS = Math.floor(Date.now() / 1000);
      const span = { fromS, toS, stepS: Math.ceil((toS - fromS) / STEPS) };
      const answered = await answerAll(dashboards, RATE_INTERVAL, (expr) => prometheus.ask(expr, span));
      return { stepSeconds: span.stepS, dashboards: answered };
    } finally {
      moving.abort();
      await told;
      await prometheus.close();
    }
  } finally {
    await fleet.close();
  }
}

const targetsOf = (fleet: Fleet): Target[] =>
  fleet.members.map(({ role, process }) => ({
    job: role,
    name: process.name,
    address: role === 'gateway' ? process.address : process.metricsAddress,
  }));

/** A process that was killed comes back at another port. */
async function tell(prometheus: Prometheus, fleet: Fleet, until: AbortSignal): Promise<void> {
  while (!until.aborted) {
    await prometheus.scrape(targetsOf(fleet));
    await sleep(1_000, undefined, { signal: until }).catch(() => {});
  }
}
