SELECT id FROM people p WHERE EXISTS (SELECT 1 FROM sales s WHERE s.person = p.id AND amount > 30)
ORDER BY id

SELECT id FROM people WHERE id NOT IN (SELECT person FROM sales WHERE person IS NOT NULL)
ORDER BY id

SELECT id, (SELECT MAX(amount) FROM sales s WHERE s.person = p.id) AS top FROM people p ORDER BY id

SELECT region, SUM(amount) AS total FROM sales GROUP BY region HAVING COUNT(*) > 29
ORDER BY total, region NULLS LAST

WITH big AS (SELECT * FROM sales WHERE amount > 20), few AS (SELECT person, COUNT(*) AS n FROM big GROUP BY person) SELECT name, SUM(n) AS n FROM few JOIN people ON person = people.id GROUP BY name
ORDER BY name

WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 9) SELECT SUM(n) FROM up

SELECT a.id, b.id FROM people a JOIN people b ON a.team = b.team AND a.id < b.id
ORDER BY a.id, b.id LIMIT 20

SELECT p.name, COUNT(s.id) AS n FROM people p LEFT JOIN sales s ON s.person = p.id AND s.region = 'ä' GROUP BY p.name
ORDER BY n DESC, p.name

SELECT COUNT(*) FROM people CROSS JOIN sales

SELECT * FROM (VALUES (1, 'x'), (2, NULL)) AS v(n, t) ORDER BY n

SELECT x.name, x.m FROM (SELECT name, MAX(score) AS m FROM people GROUP BY name) x WHERE x.m > 3
ORDER BY x.name

SELECT DISTINCT team, active FROM people ORDER BY team NULLS FIRST, active

SELECT length(region), region || '!' FROM sales WHERE region IS NOT NULL ORDER BY id LIMIT 3

SELECT GREATEST(amount, 0), NULLIF(amount, 3), ABS(amount) FROM sales ORDER BY id LIMIT 9
