/** Repositories of made-up Python that data sets are made of in tests. */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Files } from './archives.ts';

/** A module with imports, a docstring, comments and functions; its words depend on the repository and the number. */
export function madeModule(repository: string, number: number, functions = 8): string {
  const word = (i: number) => `${repository}_${(number * 7 + i * 3) % 41}`;
  const bodies = Array.from({ length: functions }, (_, i) =>
    [
      `def ${word(i)}_${number}_${i}(${word(i + 1)}, ${word(i + 2)}):`,
      `    # adds ${word(i)} to the ${word(i + 4)}`,
      `    total_${number}_${i} = ${word(i + 3)} + len(${word(i + 1)})`,
      `    for item_${i} in ${word(i + 2)}:`,
      `        total_${number}_${i} += item_${i}.price * ${i + number}`,
      `    return total_${number}_${i}`,
      '',
    ].join('\n'),
  );
  return [
    `"""Module ${number} of ${repository}."""`,
    'import os',
    'import sys',
    'from json import dumps',
    '',
    ...bodies,
  ].join('\n');
}

export function madeRepository(name: string, modules = 14): Files {
  return Object.fromEntries(Array.from({ length: modules }, (_, i) => [`${name}/m${i}.py`, madeModule(name, i)]));
}

export async function writeFiles(dir: string, files: Files): Promise<void> {
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), content);
  }
}
