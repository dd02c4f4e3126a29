/** The options of `llavacode dataset`. The code that makes data sets is loaded when the command runs. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { count } from '../services/lib/process/count-argument.ts';
import { DATASET_RETRIEVERS, LANGUAGES } from './choices.ts';
import type { DatasetOptions } from './dataset/settings.ts';

type Given = Omit<DatasetOptions, 'sources' | 'needsStars'> & { readonly json?: string };

/** Licences that ask for no more than notices. */
const PERMISSIVE = [
  ...['MIT', 'Apache-2.0', 'BSD-2-Clause', 'BSD-3-Clause', 'ISC', 'BSL-1.0'],
  ...['PSF-2.0', 'Unlicense', 'CC0-1.0'],
];

function from(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a number from ${least} to ${most}.`);
  };
}

function licenceList(text: string): readonly string[] {
  const names = text.split(',').map((name) => name.trim());
  if (names.includes('')) throw new InvalidArgumentError('It must be SPDX identifiers with commas, or permissive.');
  return names.flatMap((name) => (name === 'permissive' ? PERMISSIVE : [name]));
}

const option = (flags: string, description: string, parse: (text: string) => number, initial: number) =>
  new Option(flags, description).argParser(parse).default(initial);

/** Numbers from 0 on. */
const whole = (text: string) => (text === '0' ? 0 : count(text));

export function datasetCommand(): Command {
  return new Command('dataset')
    .description('make a data set to train projectors on; see docs/training.md')
    .argument('<sources...>', 'folders of repositories, archives (.tar, .tar.gz, .tgz, .zip), .parquet of The Stack')
    .requiredOption('--to <dir>', 'folder of the data set; a run that was stopped there goes on')
    .addOption(new Option('--language <name>', 'language of the samples').choices(LANGUAGES).default('python'))
    .option('--samples <n>', 'the most samples to train on (default: all)', count)
    .addOption(option('--valid-share <x>', 'share of repositories that are for validation', from(0, 0.5), 0.03))
    .option('--about <csv>', 'stars and licences: columns repository, stars, licence')
    .option('--exclude <file>', 'names of repositories to leave out, such as those of benchmarks, one a line')
    .addOption(
      new Option('--licences <names>', 'SPDX identifiers that are allowed, or permissive (default: all)').argParser(
        licenceList,
      ),
    )
    .addOption(option('--min-stars <n>', 'fewest stars of a repository, where they are known', whole, 50))
    .addOption(option('--min-files <n>', 'fewest files of the language in a repository', count, 5))
    .addOption(option('--min-imports <n>', 'fewest imports of a file in which holes are made', whole, 3))
    .addOption(option('--max-file-bytes <n>', 'larger files are left out', count, 100 * 1024))
    .addOption(
      option('--max-repository-bytes <n>', 'repositories with more source text are left out', count, 16 * 1024 * 1024),
    )
    .addOption(
      option('--mean-lines <x>', 'mean of the Poisson distribution of the lines of a hole, 1 to 9', from(0.1, 9), 3),
    )
    .addOption(option('--per-repository <n>', 'the most holes that are drawn of a repository', count, 200))
    .addOption(option('--chunks <n>', 'chunks of a sample; where fewer are found there is none', count, 10))
    .addOption(new Option('--retriever <name>', 'how chunks are found').choices(DATASET_RETRIEVERS).default('jaccard'))
    .option('--needs-chunks', 'only holes with a name that is in their chunks, and not in the code around them')
    .addOption(option('--seed <n>', 'the same seed and repositories give the same bytes', count, 1))
    .addOption(option('--shard-samples <n>', 'samples of a shard: a run that is stopped loses fewer', count, 2000))
    .option('--json <file>', 'write the manifest there')
    .action(run);
}

async function run(sources: string[], { json, ...options }: Given, command: Command): Promise<void> {
  const { runDataset } = await import('./dataset/terminal.ts');
  const needsStars = command.getOptionValueSource('minStars') === 'cli' && options.minStars > 0;
  await runDataset({ ...options, sources, needsStars }, json);
}
