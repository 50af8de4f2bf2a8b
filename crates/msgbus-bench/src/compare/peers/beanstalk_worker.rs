//! A worker of beanstalkd: reserve and delete, one job at a time.

use std::io;

use msgbus_load::{Step, Worker};

use super::{line, number, unexpected};

/// <https://github.com/beanstalkd/beanstalkd/blob/master/doc/protocol.txt>
#[derive(Debug, Default)]
pub(super) struct BeanstalkWorker {
    job: String,
}

impl Worker for BeanstalkWorker {
    fn take(&mut self, _: &str, _: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(b"reserve-with-timeout 0\r\n");
    }

    fn ack(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("delete {}\r\n", self.job).as_bytes());
    }

    fn decode(&mut self, input: &[u8], each: &mut dyn FnMut(Step)) -> io::Result<usize> {
        let Some(line) = line(input) else { return Ok(0) };
        let mut words = std::str::from_utf8(line).unwrap_or_default().split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("DELETED"), None, _) => each(Step::Done(1)),
            (Some("TIMED_OUT"), None, _) => each(Step::Empty),
            (Some("RESERVED"), Some(job), Some(size)) => {
                let whole = line.len() + number(size.as_bytes())? + 2;
                if input.len() < whole {
                    return Ok(0);
                }
                job.clone_into(&mut self.job);
                each(Step::Taken(1));
                return Ok(whole);
            }
            _ => return Err(unexpected(line)),
        }
        Ok(line.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_deleted_by_its_number() {
        let mut worker = BeanstalkWorker::default();
        let mut steps = Vec::new();
        let response = b"RESERVED 7 3\r\nabc\r\n";
        assert_eq!(worker.decode(&response[..18], &mut |step| steps.push(step)).unwrap(), 0);
        assert_eq!(worker.decode(response, &mut |step| steps.push(step)).unwrap(), 19);
        let mut out = Vec::new();
        worker.ack(&mut out);
        assert_eq!(out, b"delete 7\r\n");
        worker.decode(b"DELETED\r\n", &mut |step| steps.push(step)).unwrap();
        worker.decode(b"TIMED_OUT\r\n", &mut |step| steps.push(step)).unwrap();
        assert_eq!(steps, [Step::Taken(1), Step::Done(1), Step::Empty]);
        worker.decode(b"NOT_FOUND\r\n", &mut |_| ()).unwrap_err();
    }
}
