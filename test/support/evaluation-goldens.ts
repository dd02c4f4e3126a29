/** The goldens of metrics: predictions and targets with their scores (test/goldens/evaluation). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const FOLDER = join(PACKAGE_ROOT, 'test/goldens/evaluation');

/** What a file of the goldens holds. */
export const readEvaluationGoldens = <T>(name: string): T => JSON.parse(readFileSync(join(FOLDER, name), 'utf8')) as T;

/** The cases of one kind. */
export function evaluationCases<T>(kind: 'line' | 'codebleu' | 'cceval' | 'resilience'): T[] {
  const { cases } = readEvaluationGoldens<{ cases: { kind: string }[] }>('cases.json');
  return cases.filter((found) => found.kind === kind) as T[];
}
