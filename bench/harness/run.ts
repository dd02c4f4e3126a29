/** One run of a bench: it measures behind a spinner, writes the artifact, draws the charts and prints the report. */
import { writeFile } from 'node:fs/promises';
import { dirname, sep } from 'node:path';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { startProgress } from '../../services/lib/process/progress.ts';
import { RUN_OPTIONS, type RunOptions } from '../options.ts';
import { type Artifact, artifactText, writeArtifact } from '../report/artifact.ts';
import { chartName, drawCharts } from '../report/chart.ts';
import { describeEnvironment } from '../report/environment.ts';
import type { Bench } from '../report/report.ts';
import type { BenchModel } from '../system/model.ts';

/**
 * Tells the user what the bench is doing.
 * @param lasting whether the text is written also where nobody watches, as a line of its own.
 */
export type OnProgress = (text: string, lasting?: boolean) => void;

interface RunPlan {
  readonly models: readonly Pick<BenchModel, 'name' | 'manifest'>[];
  /** The options of the run, and what else its artifact records beside them. */
  readonly settings: object;
}

/** Writes the artifact as it would be if the run ended now: a run that is killed later keeps what it has. */
export type Save<Result> = (result: Result) => Promise<void>;

/** @returns the artifact that it has written. */
export async function run<Result>(
  bench: Bench<Result>,
  options: RunOptions,
  plan: RunPlan,
  measure: (onProgress: OnProgress, save: Save<Result>) => Promise<Result>,
): Promise<Artifact<Result>> {
  const { data, out, name = bench.name, json } = options;
  await makeFolder(data);
  const progress = startProgress(bench.name);
  try {
    const onProgress: OnProgress = (text, lasting = false) => {
      const said = `${bench.name}: ${text}`;
      if (lasting) progress.start(said);
      else progress.update(said);
    };
    const artifactOf = await recorder(bench, options.command, plan);
    const save = async (result: Result) => void (await writeArtifact(out, name, artifactOf(result)));
    const artifact = artifactOf(await measure(onProgress, save));
    const file = await writeArtifact(out, name, artifact);
    if (json !== undefined) {
      await makeFolder(dirname(json));
      await writeFile(json, artifactText(artifact));
    }
    const drawn = await draw(bench, artifact, out, name);
    progress.succeed(`${bench.name}: ${file}${drawn ? '' : ' (without charts: echarts is a development dependency)'}`);
    process.stdout.write(`\n${bench.report(artifact).markdown}\n\n`);
    return artifact;
  } catch (error) {
    progress.fail();
    throw error;
  }
}

/** Looks at the machine before the run. @returns what makes an artifact of a result that there is by then. */
async function recorder<Result>(
  { name, definitions }: Bench<Result>,
  command: string,
  { models, settings }: RunPlan,
): Promise<(result: Result) => Artifact<Result>> {
  const environment = await describeEnvironment();
  const startedAt = new Date();
  return (result) => ({
    format: 1,
    bench: name,
    command: withoutLogins(command),
    startedAt: startedAt.toISOString(),
    seconds: Math.round((Date.now() - startedAt.getTime()) / 100) / 10,
    environment,
    models: models.map(({ name, manifest: { precision, fingerprint } }) => ({ name, precision, fingerprint })),
    settings: recorded(settings),
    definitions,
    result,
  });
}

/** Options that say where things lie, and URLs, which may hold a password: an artifact does not record them. */
const NOT_RECORDED = new Set([...Object.keys(RUN_OPTIONS), 'command', 'url', 'summarizer', 'peers', 'redis']);

/** Takes logins out of the URLs of a command: they may hold passwords. It hides too much rather than too little. */
const withoutLogins = (command: string) => command.replace(/(:\/\/)\S+@/g, '$1***@');

/** Paths are recorded as seen from the package's folder. */
function recorded(settings: object): Record<string, unknown> {
  const inside = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(inside);
    return typeof value === 'string' ? value.replace(PACKAGE_ROOT + sep, '') : value;
  };
  const kept = Object.entries(settings).filter(([name]) => !NOT_RECORDED.has(name));
  return Object.fromEntries(kept.map(([name, value]) => [name, inside(value)]));
}

/** Draws the charts of an artifact. @returns false if ECharts is not installed. */
export function draw(bench: Bench<unknown>, artifact: Artifact, out: string, name: string): Promise<boolean> {
  const { charts } = bench.report(artifact);
  return drawCharts(
    out,
    charts.map((chart) => ({ ...chart, name: chartName(name, bench.name, chart.name) })),
  );
}
