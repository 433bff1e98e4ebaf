//! Files mapped into memory, tensors that lie in them, and giving their pages back.

use super::ffi;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// A file as bytes in memory. The map is private: what is written to it never reaches the file. It lives as long as the
/// last tensor that lies in it.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    size: usize,
    bytes: Mutex<Tensor>,
}

impl MappedFile {
    /// Maps the `size` bytes of the file at `path`. Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Argument`] if the path is not UTF-8, [`Error::Torch`] if the file cannot be mapped.
    pub fn open(path: &Path, size: usize) -> Result<Arc<Self>> {
        let name =
            path.to_str().ok_or_else(|| Error::Argument(format!("{}: the name is not UTF-8", path.display())))?;
        let bytes = Tensor::f_from_file(name, false, Some(size as i64), (Kind::Uint8, Device::Cpu))?;
        Ok(Arc::new(Self { path: path.to_path_buf(), size, bytes: Mutex::new(bytes) }))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> Tensor {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }

    /// Whether anything was written to a tensor in the map: all views count their changes together.
    fn is_written(&self) -> Result<bool> {
        Ok(self.bytes().f_internal_version()? != 0)
    }
}

/// Where a tensor lies in a mapped file. Clones are the same place.
#[derive(Clone, Debug)]
pub struct MappedTensor {
    file: Arc<MappedFile>,
    offset: usize,
    kind: Kind,
    shape: Vec<i64>,
}

impl MappedTensor {
    /// The tensor of dtype `kind` and `shape` that begins `offset` bytes into `file`.
    ///
    /// # Errors
    /// [`Error::Config`] if it reaches beyond the file's end.
    pub fn new(file: &Arc<MappedFile>, offset: usize, kind: Kind, shape: &[i64]) -> Result<Self> {
        let tensor = Self { file: file.clone(), offset, kind, shape: shape.to_vec() };
        match offset.checked_add(tensor.len()) {
            Some(end) if end <= file.size => Ok(tensor),
            _ => Err(Error::Config(format!("{}: a tensor reaches beyond the end", file.path.display()))),
        }
    }

    /// The file it lies in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The file's dtype.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The file's shape, or that given by [`MappedTensor::reshaped`].
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The same bytes as a tensor of another shape.
    #[must_use]
    pub fn reshaped(&self, shape: &[i64]) -> Self {
        Self { shape: shape.to_vec(), ..self.clone() }
    }

    /// The tensors of as many rows each that lie below each other in this one; none if they do not divide.
    #[must_use]
    pub fn split_rows(&self, parts: usize) -> Option<Vec<Self>> {
        let (first, rest) = self.shape.split_first()?;
        let (rows, whole) = (usize::try_from(*first).ok()?, self.len());
        if parts == 0 || rows % parts != 0 {
            return None;
        }
        let shape = [&[(rows / parts) as i64], rest].concat();
        let part = |number: usize| Self {
            offset: self.offset + number * (whole / parts),
            shape: shape.clone(),
            ..self.clone()
        };
        Some((0..parts).map(part).collect())
    }

    /// Its length in bytes.
    fn len(&self) -> usize {
        self.shape.iter().map(|&side| side as usize).product::<usize>() * self.kind.elt_size_in_bytes()
    }

    /// The tensor itself: a view of the map, unless the file has it at an odd address.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where a tensor at an odd address has no room.
    pub fn view(&self) -> Result<Tensor> {
        let bytes = self.file.bytes().f_narrow(0, self.offset as i64, self.len() as i64)?;
        let bytes = match self.offset % self.kind.elt_size_in_bytes() {
            0 => bytes,
            _ => bytes.f_alias_copy()?,
        };
        Ok(bytes.f_view_dtype(self.kind)?.f_view(self.shape.as_slice())?)
    }

    /// Whether `tensor` is this view of the map, and not a copy of it.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn is(&self, tensor: &Tensor) -> Result<bool> {
        let address = self.file.bytes().data_ptr() as usize + self.offset;
        let same_place = tensor.device() == Device::Cpu && tensor.data_ptr() as usize == address;
        Ok(same_place && tensor.f_kind()? == self.kind && tensor.size() == self.shape && tensor.is_contiguous())
    }

    /// Whether anything was written to the map, to this tensor or another one.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn is_written(&self) -> Result<bool> {
        self.file.is_written()
    }

    /// Gives the tensor's pages back to the operating system; they are read from the file again when they are needed.
    /// A map that was written to keeps them, for they are nowhere else. Does nothing but on Linux.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system refuses.
    pub fn release(&self) -> Result<()> {
        if self.len() == 0 || self.is_written()? {
            return Ok(());
        }
        ffi::release_pages(&self.file.bytes(), self.offset, self.len()).map_err(Error::io(&self.file.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::TensorExt;

    fn file(folder: &Path) -> Arc<MappedFile> {
        let path = folder.join("bytes");
        let values: Vec<u8> = (0..8192u16).flat_map(|value| f32::from(value).to_le_bytes()).collect();
        std::fs::write(&path, &values).unwrap();
        MappedFile::open(&path, values.len()).unwrap()
    }

    #[test]
    fn released_pages_come_back_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mapped = MappedTensor::new(&file(folder.path()), 4, Kind::Float, &[2, 4000]).unwrap();
        let view = mapped.view().unwrap();
        let before = view.to_vec().unwrap();
        assert!(mapped.is(&view).unwrap());
        mapped.release().unwrap();
        assert_eq!(view.to_vec().unwrap(), before);
        assert_eq!(before[..2], [1.0, 2.0]);
    }

    #[test]
    fn a_changed_map_keeps_its_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let mapped = MappedTensor::new(&file, 0, Kind::Float, &[8]).unwrap();
        let neighbour = MappedTensor::new(&file, 32, Kind::Float, &[8]).unwrap();
        assert!(!mapped.is_written().unwrap());
        let _ = tch::no_grad(|| mapped.view().unwrap().fill_(7.0));
        assert!(neighbour.is_written().unwrap());
        neighbour.release().unwrap();
        assert_eq!(mapped.view().unwrap().to_vec().unwrap(), [7.0; 8]);
    }

    #[test]
    fn a_tensor_beyond_the_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = MappedTensor::new(&file(folder.path()), 32760, Kind::Float, &[3]).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
    }
}
