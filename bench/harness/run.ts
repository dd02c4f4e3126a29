/** One run of any bench: measured behind a spinner, kept as an artifact, drawn, printed. */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import ora from 'ora';
import { type Artifact, artifactText, readArtifacts, record, writeArtifact } from '../report/artifact.ts';
import type { BenchName } from '../report/benches.ts';
import { chartName, drawCharts } from '../report/chart.ts';
import { reportOf } from '../reports.ts';
import type { BenchModel } from '../system/model.ts';

/** What every bench is told. */
export interface RunOptions {
  /** Folder for bundles, indexes and logs. */
  readonly data: string;
  /** Folder for artifacts and charts. */
  readonly out: string;
  /** Name of the artifact; the bench's own when not given. */
  readonly name?: string;
  /** Where to write the artifact a second time. */
  readonly json?: string;
  /** That makes this run again. */
  readonly command: string;
}

export interface RunPlan {
  readonly bench: BenchName;
  readonly models: readonly BenchModel[];
  readonly settings: Readonly<Record<string, unknown>>;
}

export async function run<Result>(
  options: RunOptions,
  { bench, models, settings }: RunPlan,
  measure: (progress: (text: string) => void) => Promise<Result>,
): Promise<Artifact<Result>> {
  const { command, data, out, name = bench, json } = options;
  await mkdir(data, { recursive: true });
  const spinner = ora({ text: bench, stream: process.stderr }).start();
  try {
    const artifact = await record({ bench, command, models, settings }, () =>
      measure((text) => {
        spinner.text = `${bench}: ${text}`;
      }),
    );
    const file = await writeArtifact(out, name, artifact);
    if (json !== undefined) {
      await mkdir(dirname(json), { recursive: true });
      await writeFile(json, artifactText(artifact));
    }
    const { markdown } = reportOf(artifact);
    const drawn = await draw(out, name, artifact);
    spinner.succeed(
      `${bench}: ${file}${drawn ? '' : ' (no charts: echarts and @resvg/resvg-js are development dependencies)'}`,
    );
    process.stdout.write(`\n${markdown}\n\n`);
    return artifact;
  } catch (error) {
    spinner.fail();
    throw error;
  }
}

/** @returns false where the libraries for it are not installed. */
function draw(out: string, name: string, artifact: Artifact): Promise<boolean> {
  const { charts } = reportOf(artifact);
  return drawCharts(
    out,
    charts.map((chart) => ({ ...chart, name: chartName(name, artifact.bench, chart.name) })),
  );
}

/** The charts of all artifacts of a folder, anew. */
export async function drawAll(out: string): Promise<void> {
  for (const [name, artifact] of await readArtifacts(out)) await draw(out, name, artifact);
}
